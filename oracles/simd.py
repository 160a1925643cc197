"""Eight float32 numbers at once in functions compiled by numba: a type and its operations.

A `Float8` is LLVM's vector <8 x float>: one register with AVX, and what LLVM makes of it elsewhere. It
lives inside compiled functions only, between `load` and `store`, which take a contiguous array of any
number of axes and the place of the first number in it. Loops written with it are as fast as they look,
where loops over scalars depend on what the compiler can prove about them.

The comparison functions keep NaN, as everything else does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

LANES = 8
_intrinsic: Any = intrinsic  # whose results are called with fewer arguments than they show
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class _Float8(types.Type):
    """Numba's name for the vector."""

    def __init__(self) -> None:
        super().__init__(name="Float8")


@register_model(_Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


float8 = _Float8()


def _address(context: Any, builder: Any, signature: Any, args: Any, kind: ir.Type) -> Any:
    """Where place args[1] of array args[0] is."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())


def _check(array: Any) -> Any:
    """The type of an array, which has to be contiguous for places to mean anything."""
    if not (isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float32):
        raise TypingError(f"expected a contiguous float32 array, got {array}")
    return array


def _repeat(builder: Any, number: Any) -> Any:
    """A number in every lane."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INT, 0))
    lanes = ir.Constant(_INTEGERS, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), lanes)


@_intrinsic
def load(typingctx, array, place):  # pragma: no cover (runs inside the compiler)
    """Eight consecutive numbers of an array."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args, _VECTOR), align=4)

    return float8(_check(array), types.intp), codegen


@_intrinsic
def store(typingctx, array, place, vector):  # pragma: no cover (runs inside the compiler)
    """Write eight consecutive numbers of an array."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(_check(array), types.intp, float8), codegen


@_intrinsic
def load_same(typingctx, array, place):  # pragma: no cover (runs inside the compiler)
    """One number of an array, in every lane."""

    def codegen(context, builder, signature, args):
        return _repeat(builder, builder.load(_address(context, builder, signature, args, _FLOAT)))

    return float8(_check(array), types.intp), codegen


@_intrinsic
def same(typingctx, number):  # pragma: no cover (runs inside the compiler)
    """One number in every lane."""

    def codegen(context, builder, signature, args):
        return _repeat(builder, args[0])

    return float8(types.float32), codegen


def _operation(arguments: int, emit: Callable[[Any, Any], Any]) -> Any:
    """A function of so many vectors, lane by lane."""

    def codegen(context, builder, signature, args):  # pragma: no cover (runs inside the compiler)
        return emit(builder, args)

    typed = float8(*[float8] * arguments), codegen
    if arguments == 1:
        return _intrinsic(lambda typingctx, a: typed)
    if arguments == 2:
        return _intrinsic(lambda typingctx, a, b: typed)
    return _intrinsic(lambda typingctx, a, b, c: typed)


def _call(name: str) -> Callable[[Any, Any], Any]:
    """LLVM's own function of that name."""

    def emit(builder: Any, args: Any) -> Any:  # pragma: no cover (runs inside the compiler)
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v8f32"), args)

    return emit


def _choose(comparison: str) -> Callable[[Any, Any], Any]:
    """The first number where the comparison holds, else the second: a NaN there stays."""

    def emit(builder: Any, args: Any) -> Any:  # pragma: no cover (runs inside the compiler)
        return builder.select(builder.fcmp_ordered(comparison, *args), *args)

    return emit


def _emit_exponent(builder: Any, args: Any) -> Any:  # pragma: no cover (runs inside the compiler)
    bits = builder.bitcast(args[0], _INTEGERS)
    return builder.bitcast(builder.shl(bits, ir.Constant(_INTEGERS, [23] * LANES)), _VECTOR)


add = _operation(2, lambda builder, args: builder.fadd(*args))
subtract = _operation(2, lambda builder, args: builder.fsub(*args))
multiply = _operation(2, lambda builder, args: builder.fmul(*args))
divide = _operation(2, lambda builder, args: builder.fdiv(*args))
root = _operation(1, _call("sqrt"))
#: a · b + c, rounded once where the machine can.
fma = _operation(3, _call("fmuladd"))
#: The larger and the smaller of two; NaN in the second stays.
larger = _operation(2, _choose(">"))
smaller = _operation(2, _choose("<"))
_exponent = _operation(1, _emit_exponent)


@_intrinsic
def where_at_most(typingctx, a, b, yes, no):  # pragma: no cover (runs inside the compiler)
    """`yes` where a ≤ b, else `no`."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<=", args[0], args[1]), args[2], args[3])

    return float8(float8, float8, float8, float8), codegen


inlined = numba.njit(forceinline=True, error_model="numpy")

_f = np.float32
#: Minimax polynomial of 2^f on [−½, ½] with value 1 at 0, highest power first: relative error 9e-8.
_C5, _C4, _C3 = _f(1.3264729641e-3), _f(9.6715120599e-3), _f(5.5507335812e-2)
_C2, _C1, _C0 = _f(2.4022242427e-1), _f(6.9314700365e-1), _f(1.0)
#: 1.5 · 2²³ + 127: the last bits of a sum with it are the rounded integer plus the bias of the exponent.
_ROUND = _f(12582912.0 + 127.0)
_LOWEST, _HIGHEST = _f(-126.0), _f(126.0)


@inlined
def exp2(x):  # pragma: no cover (compiled)
    """2^x for x ≤ 126, which below −126 is 2^−126; relative error 2e-7."""
    x = larger(same(_LOWEST), x)
    rounded = add(x, same(_ROUND))
    f = subtract(x, subtract(rounded, same(_ROUND)))
    p = fma(same(_C5), f, same(_C4))
    p = fma(p, f, same(_C3))
    p = fma(p, f, same(_C2))
    p = fma(p, f, same(_C1))
    p = fma(p, f, same(_C0))
    return multiply(p, _exponent(rounded))
