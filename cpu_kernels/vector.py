"""LLVM vectors as first-class numba values: types, operators, and makers of functions on them (see simd.py)."""

import operator
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

_I32 = ir.IntType(32)
_ELEMENTS = {
    "i8": ir.IntType(8),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
}
SCALARS = {"i8": types.int8, "i32": types.int32, "f32": types.float32}


class Vector(types.Type):
    """`count` lanes of an element type named as in LLVM."""

    def __init__(self, element: str, count: int):
        self.element, self.count = element, count
        super().__init__(name=f"{element}x{count}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.element], self.count)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


I8x8, I8x16 = (Vector("i8", n) for n in (8, 16))
I32x8 = Vector("i32", 8)
F32x4, F32x8 = (Vector("f32", n) for n in (4, 8))


def pointer(builder, address):
    return builder.inttoptr(address, ir.PointerType())


def call(builder, name, result, *arguments):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def shuffled(builder, a, b, lanes: Sequence[int]):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def broadcast(builder, scalar, count: int):
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    return shuffled(builder, builder.insert_element(undefined, scalar, _I32(0)), undefined, [0] * count)


def vector_constant(vector: Vector, value):
    values = value if isinstance(value, Sequence) else [value] * vector.count
    return ir.Constant(vector.llvm, [ir.Constant(vector.llvm.element, v) for v in values])


def as_element(context, builder, value, source, vector: Vector):
    """A scalar argument of an operator as one lane of `vector`."""
    return context.cast(builder, value, source, SCALARS[vector.element])


def unary(argument, result, emit):
    @intrinsic
    def function(typing, x):
        return result(argument), lambda context, builder, signature, a: emit(builder, a[0])

    return function


def constant(vector: Vector, value) -> Any:
    """A function without arguments that returns this vector: `MASK = constant(F32x8, [...])`, `MASK()` in a kernel."""

    @intrinsic
    def function(typing):
        return vector(), lambda context, builder, signature, a: vector_constant(vector, value)

    return function


def shuffle(vector: Vector, lanes: Sequence[int]) -> Any:
    """A function that picks lanes of one vector."""
    result = Vector(vector.element, len(lanes))
    return unary(vector, result, lambda builder, a: shuffled(builder, a, ir.Constant(a.type, ir.Undefined), lanes))


def _operator(python, integer: str, floating: str):
    """`vector op vector` and `vector op scalar`. Lowered in place: an @overload compiles a function for each use."""

    @infer_global(python)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            x, y = args
            if isinstance(x, Vector) and (x == y or isinstance(y, types.Number)):
                return signature(x, x, y)

    @lower_builtin(python, Vector, types.Any)
    def emit(context, builder, signature, a):
        x, y = signature.args
        right = a[1]
        if not isinstance(y, Vector):
            right = broadcast(builder, as_element(context, builder, right, y, x), x.count)
        return getattr(builder, floating if x.element[0] == "f" else integer)(a[0], right)


for _python, _integer, _floating in (
    (operator.add, "add", "fadd"),
    (operator.sub, "sub", "fsub"),
    (operator.mul, "mul", "fmul"),
    (operator.and_, "and_", ""),
    (operator.lshift, "shl", ""),
):
    _operator(_python, _integer, _floating)
