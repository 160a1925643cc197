"""Compiled inner loops of `transformer_packed` (numba), on feature-major float32 arrays (features, tokens).

With tokens along the last axis every loop below runs over consecutive numbers, so that the compiler
turns it into SIMD instructions: norms and rotations need no horizontal sums. The tokens of a block are
rows of L consecutive ones: token t is number t mod L of row t div L.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# Sums may be reordered, but NaN stays NaN: a broken model must not look healthy.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}
_f = np.float32
#: Coefficients of 2^f on [−½, ½], highest power first: ln(2)^k / k!, relative error 1.2e-7.
_C6, _C5, _C4 = _f(1.5403530393e-4), _f(1.3333558146e-3), _f(9.6181291076e-3)
_C3, _C2, _C1 = _f(5.5504108665e-2), _f(2.4022650696e-1), _f(6.9314718056e-1)
#: Powers at which the exponent field of a float32 would wrap.
_LOWEST, _HIGHEST = _f(-126.0), _f(126.0)
_LOG2_E = _f(1.4426950408889634)
#: Below every score, and far enough from −∞ that differences stay finite.
_MINUS_INFINITY = _f(-1.0e38)


@intrinsic
def _as_float(typingctx, bits):  # pragma: no cover (runs inside the compiler)
    """The float32 with the given bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@numba.njit(inline="always", **_OPTIONS)
def _exp2(x):  # pragma: no cover (compiled)
    """2^x to 1.2e-7, |x| cut off at 126, without the library call that would keep loops from vectorising."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = np.floor(x + _f(0.5))
    f = x - n
    p = ((((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f) + _C1) * f + _f(1.0)
    return p * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **_OPTIONS)
def rms_normalise(x, epsilon, out, scratch):  # pragma: no cover (compiled)
    """Write x / √(mean of squares over features + epsilon), token by token, into out; scratch (tokens,)."""
    features, tokens = x.shape
    for t in range(tokens):
        scratch[t] = _f(0.0)
    for c in range(features):
        for t in range(tokens):
            scratch[t] += x[c, t] * x[c, t]
    for t in range(tokens):
        scratch[t] = _f(1.0) / np.sqrt(scratch[t] / _f(features) + epsilon)
    for c in range(features):
        for t in range(tokens):
            out[c, t] = x[c, t] * scratch[t]


@numba.njit(cache=True, **_OPTIONS)
def rotate(x, cos, sin):  # pragma: no cover (compiled)
    """Rotary embedding in place: x (heads, d, tokens); cos, sin (d, tokens); pairs are (c, c + d/2)."""
    heads, d, tokens = x.shape
    half = d // 2
    for h in range(heads):
        for c in range(half):
            for t in range(tokens):
                u, v = x[h, c, t], x[h, c + half, t]
                x[h, c, t] = u * cos[c, t] - v * sin[c, t]
                x[h, c + half, t] = v * cos[c + half, t] + u * sin[c + half, t]


@numba.njit(cache=True, **_OPTIONS)
def gate(gates_and_values, out):  # pragma: no cover (compiled)
    """Write silu(g) · u into out, where the first half of the features are g, the second u."""
    features, tokens = out.shape
    for c in range(features):
        for t in range(tokens):
            g = gates_and_values[c, t]
            out[c, t] = g / (_f(1.0) + _exp2(-g * _LOG2_E)) * gates_and_values[features + c, t]


@numba.njit(cache=True, **_OPTIONS)
def exponentiate(before, own, last, top, total):  # pragma: no cover (compiled)
    """Softmax numerators in place, and total[h, t] = 1 / their sum, t = row · reads + j.

    before: (heads, prefix, rows · reads) and own: (heads, rows, length, reads), scores in bits, key by
    query; own keys after last[row, j], int32, get zero. top: scratch, as long as a row of `before`.
    """
    heads, prefix, queries = before.shape
    rows, length, reads = own.shape[1:]
    for h in range(heads):
        for t in range(queries):
            top[t] = _MINUS_INFINITY
            total[h, t] = _f(0.0)
        for k in range(prefix):
            for t in range(queries):
                top[t] = before[h, k, t] if before[h, k, t] > top[t] else top[t]
        for r in range(rows):
            first = r * reads
            for k in range(length):
                for j in range(reads):
                    score = own[h, r, k, j] if last[r, j] >= k else _MINUS_INFINITY
                    own[h, r, k, j] = score
                    top[first + j] = score if score > top[first + j] else top[first + j]
        for k in range(prefix):
            for t in range(queries):
                power = _exp2(before[h, k, t] - top[t])
                before[h, k, t] = power
                total[h, t] += power
        for r in range(rows):
            first = r * reads
            for k in range(length):
                for j in range(reads):
                    power = _exp2(own[h, r, k, j] - top[first + j])
                    own[h, r, k, j] = power
                    total[h, first + j] += power
        for t in range(queries):
            total[h, t] = _f(1.0) / total[h, t]


@numba.njit(cache=True, **_OPTIONS)
def mix(before, own, total):  # pragma: no cover (compiled)
    """Add own (heads, rows, d, reads) to before (heads, d, rows · reads), times total (heads, queries)."""
    heads, rows, d, reads = own.shape
    for h in range(heads):
        for c in range(d):
            for r in range(rows):
                first = r * reads
                for j in range(reads):
                    before[h, c, first + j] += own[h, r, c, j]
            for t in range(rows * reads):
                before[h, c, t] *= total[h, t]
