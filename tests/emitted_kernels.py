"""One tile width's kernel, emitted as LLVM IR, compiled for any CPU or for this one, and run without the drivers."""

import ctypes
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from cpu_kernels import floats, tile
from cpu_kernels.lanes import I64


def load_format(name: str) -> Any:
    return importlib.import_module(f"cpu_kernels.formats.{name.lower()}").FORMAT


def emit(form: Any, columns: int, triple: str) -> str:
    """The IR of multiply(weights, groups, blocks, x_list, y_list, y_offset) for one tile width."""
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 6), "multiply")
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    emitter = floats if issubclass(form, floats.FloatFormat) else tile
    if columns in tile.MACHINE.COLUMNS:
        emitter.emit_columns(builder, form, columns, list(function.args))
    else:
        emitter.emit_fours(builder, form, I64(columns // 4), list(function.args))
    builder.ret_void()
    return str(module)


def optimize(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    module = llvm.parse_assembly(text)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return module


def assembly(form: Any, columns: int, cpu: str, triple: str, comments: bool = False) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, opt=3, reloc="pic", codemodel="default")
    machine.set_asm_verbosity(comments)
    return machine.emit_assembly(optimize(emit(form, columns, triple), machine))


def innermost_loops(text: str) -> Iterator[list[str]]:
    """Instructions between a label and the last jump back to it, where no other loop lies within."""
    lines = [line.split("\t#")[0].rstrip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.?LBB\w+:", line)}
    jumps = ((i, re.search(r"^\s+(?:j|b|cb|tb)\S*\s.*?(\.?LBB\w+)", line)) for i, line in enumerate(lines))
    spans = [(labels[jump[1]], i) for i, jump in jumps if jump and labels.get(jump[1], i) < i]
    for first, last in spans:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            yield lines[first : last + 1]


def interleaved(raw: np.ndarray, form: Any) -> np.ndarray:
    """uint8 [16, bytes of a row] -> a group of the x16 layout, 64-byte aligned."""
    rows = raw.reshape(16, -1, form.BYTES)
    halves = rows[:, :, :0]
    if form.HALF is not None:
        rows, halves = np.delete(rows, [form.HALF, form.HALF + 1], axis=2), rows[:, :, form.HALF : form.HALF + 2]
    words = rows.reshape(16, rows.shape[1], -1, 4).transpose(1, 2, 0, 3)
    if form.ORDER:
        words = words[:, list(form.ORDER)]
    return np.concatenate([halves.transpose(1, 0, 2).reshape(-1), words.reshape(-1)])


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K] -> the column's records (activation.py) and the float64 values that they stand for."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    codes = np.rint(blocks / scale[:, None]).astype(np.int8)
    low, high = codes[:, :16].sum(axis=1), codes[:, 16:].sum(axis=1)
    fields = np.stack([scale, scale * low, scale * high, scale * (low + high)], axis=1).astype(np.float32)
    starts = -128 * np.stack([low, high, low + high, 0 * low], axis=1).astype(np.int32)
    records = np.concatenate([part.view(np.uint8) for part in (codes, fields, starts)], axis=1)
    return np.ascontiguousarray(records), (codes * scale[:, None].astype(np.float64)).reshape(-1)


# What the kernel finds on the stack: floats are NaN, addresses lie nowhere.
POISON = """
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define internal void @poison() noinline {
  %space = alloca [131072 x i8], align 64
  call void @llvm.memset.p0.i64(ptr %space, i8 -1, i64 131072, i1 true)
  ret void
}
define void @poisoned(i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f) {
  call void @poison()
  call void @multiply(i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f)
  ret void
}
"""


def compiled(text: str, features: str = "") -> Callable[..., None]:
    """For this CPU, with more `features`: multiply(weights, groups, blocks, x_list, y_list, y_offset) of addresses."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten() + features
    host = llvm.Target.from_default_triple()
    machine = host.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=1, jit=True)
    engine = llvm.create_mcjit_compiler(optimize(text + POISON, machine), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(engine.get_function_address("poisoned"))

    def multiply(*arguments: int) -> None:
        assert engine  # owns the code
        function(*arguments)

    return multiply
