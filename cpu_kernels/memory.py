"""Addresses as typed pointers, for `numba.carray` inside jobs: a job is given int64 addresses, kernels want arrays."""

from numba import types
from numba.extending import intrinsic


def _pointer_to(dtype):
    @intrinsic
    def pointer(typing, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(dtype)(types.int64), codegen

    return pointer


f32_at, u16_at, u8_at, i32_at, i64_at = (
    _pointer_to(dtype) for dtype in (types.float32, types.uint16, types.uint8, types.int32, types.int64)
)
