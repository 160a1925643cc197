"""The passes of `kl_passes`, compiled (numba): each reads and writes the numbers of a block once.

A row of a block (one slack of every problem) stays in the first-level cache while the short loops below
pass over it. Every loop touches few arrays, so that the compiler can prove them apart and use SIMD.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from lrlm_sim.kl_passes import DROPPED_PIVOT, PIVOT_NOISE, Look, Passes, Prediction

# No flag lets the compiler assume that there is no NaN: a problem that breaks down must show it.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
# Bits of float64: one, √½, the mantissa's, and 2^52, which an integer below 2^52 can be put into.
_ONE, _SQRT_HALF = np.int64(0x3FF0000000000000), np.int64(0x3FE6A09E667F3BCD)
_MANTISSA, _EXPONENT_OF_2_52 = np.int64(0x000FFFFFFFFFFFFF), np.int64(0x4330000000000000)
_2_52_AND_BIAS = 2.0**52 + 1023.0
#: log 2 to 33 bits, and the rest; coefficients of the series in s² (minimax, as in FDLIBM's e_log.c).
_LN2, _LN2_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_L1, _L2, _L3 = 6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01
_L4, _L5 = 2.222219843214978396e-01, 1.818357216161805012e-01
_L6, _L7 = 1.531383769920937332e-01, 1.479819860511658591e-01


class CompiledPasses(Passes):
    """`Passes` in compiled loops."""

    def look(self, floors, slack, dual, tilt, log_targets):
        m, (count, size) = len(floors), slack.shape
        log_ratio, lag, chord = (self.space(name, m, size) for name in ("log_ratio", "lag", "chord"))
        weights, (total, entropy, magnitude) = self.space("weights", count, size), np.zeros((3, size))
        _look_at_entropy(floors[:, 0], slack, tilt, log_targets, log_ratio, lag, chord, entropy, magnitude)
        _look_at_slacks(slack, dual, chord, weights, total)
        return Look(log_ratio, lag, chord, weights, total, entropy, magnitude)

    def predict(self, relative, slack, dual):
        first, second = np.zeros((2, slack.shape[1]))
        least, greatest = np.full_like(first, np.inf), np.full_like(first, -np.inf)
        _predict(relative, slack, dual, first, second, least, greatest)
        return Prediction(first, second, least, greatest)

    def correct(self, relative, aim, slack, dual, log_ratio):
        pull = self.space("pull", *slack.shape)
        _correct(relative, aim, slack, dual, log_ratio, pull)
        return pull

    def limit(self, moved, slack, wanted):
        ends = np.full((2, slack.shape[1]), np.inf)
        _limit(moved, slack, wanted, *ends)
        return ends[0], ends[1]

    def move(self, look, moved, wanted, steps, slack, dual, tilt):
        _move(look.chord, look.lag, moved, wanted, *steps, slack, dual, tilt)

    def cholesky(self, pairs):
        factors, scratch = self.space("factors", *pairs.shape), self.space("scratch", pairs.shape[1])
        _cholesky(pairs, math.isqrt(2 * len(pairs)), factors, scratch)
        return factors

    def cholesky_solve(self, factors, x):
        _cholesky_solve(factors, x)


@intrinsic
def _bits(typingctx, x):  # pragma: no cover (runs inside the compiler)
    """The 64 bits of a float64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _as_float(typingctx, bits):  # pragma: no cover (runs inside the compiler)
    """The float64 with the given bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@numba.njit(inline="always", **_OPTIONS)
def _log(x):  # pragma: no cover (compiled)
    """The logarithm of x ≥ 2.3e-308 to an ulp, in operations that have SIMD forms.

    x = 2^e (1 + f), 1 + f in [√½, √2); log(1 + f) = f − f²/2 + s·(f²/2 + r(s²)), s = f/(2 + f).
    """
    bits = _bits(x) + _ONE - _SQRT_HALF  # pyright: ignore[reportCallIssue]
    e = _as_float((bits >> 52) | _EXPONENT_OF_2_52) - _2_52_AND_BIAS
    f = _as_float((bits & _MANTISSA) + _SQRT_HALF) - 1.0
    s = f / (2.0 + f)
    z = s * s
    half = 0.5 * f * f
    r = z * (_L1 + z * (_L2 + z * (_L3 + z * (_L4 + z * (_L5 + z * (_L6 + z * _L7))))))
    return e * _LN2 - ((half - (s * (half + r) + e * _LN2_REST)) - f) + (x - x)  # NaN and ∞ give NaN


@numba.njit(cache=True, **_OPTIONS)
def _look_at_entropy(
    floors, slack, tilt, log_targets, log_ratio, lag, chord, entropy, magnitude
):  # pragma: no cover (compiled)
    m, size = tilt.shape
    for j in range(m):
        floor = floors[j]
        for b in range(size):
            log_ratio[j, b] = _log(floor + slack[j, b]) - log_targets[j, b]
        for b in range(size):
            lag[j, b] = tilt[j, b] - log_ratio[j, b]
        for b in range(size):
            half = 0.5 * lag[j, b]
            square = half * half
            y = floor + slack[j, b]
            chord[j, b] = (np.sqrt(1.0 + square) - half) / y
            entropy[b] += 2.0 * y * square
        for b in range(size):
            magnitude[b] += (floor + slack[j, b]) * (1.0 + np.abs(log_ratio[j, b]))


@numba.njit(cache=True, **_OPTIONS)
def _look_at_slacks(slack, dual, chord, weights, total):  # pragma: no cover (compiled)
    m, (count, size) = len(chord), slack.shape
    for j in range(count):
        for b in range(size):
            weights[j, b] = dual[j, b] / slack[j, b]
        for b in range(size):
            total[b] += dual[j, b] * slack[j, b]
        if j < m:
            for b in range(size):
                weights[j, b] += chord[j, b]


@numba.njit(cache=True, **_OPTIONS)
def _predict(relative, slack, dual, first, second, least, greatest):  # pragma: no cover (compiled)
    count, size = slack.shape
    for j in range(count):
        for b in range(size):
            relative[j, b] /= slack[j, b]
        for b in range(size):
            change = slack[j, b] * dual[j, b] * relative[j, b]
            first[b] += change
            second[b] += change * relative[j, b]
        for b in range(size):
            r = relative[j, b]
            least[b] = r if r < least[b] else least[b]
            greatest[b] = r if r > greatest[b] else greatest[b]


@numba.njit(cache=True, **_OPTIONS)
def _correct(relative, aim, slack, dual, log_ratio, pull):  # pragma: no cover (compiled)
    m, size = log_ratio.shape
    for j in range(len(slack)):
        for b in range(size):
            pull[j, b] = aim[b] / (slack[j, b] * dual[j, b])
        for b in range(size):
            relative[j, b] = (relative[j, b] + 1) * relative[j, b] + pull[j, b]
        for b in range(size):
            pull[j, b] = -dual[j, b] * relative[j, b]
        if j < m:
            for b in range(size):
                pull[j, b] += log_ratio[j, b]


@numba.njit(cache=True, **_OPTIONS)
def _limit(moved, slack, wanted, least, least_wanted):  # pragma: no cover (compiled)
    count, size = slack.shape
    for j in range(count):
        for b in range(size):
            relative = moved[j, b] / slack[j, b]
            wanted[j, b] -= relative
            least[b] = relative if relative < least[b] else least[b]
        for b in range(size):
            w = wanted[j, b]
            least_wanted[b] = w if w < least_wanted[b] else least_wanted[b]


@numba.njit(cache=True, **_OPTIONS)
def _move(chord, lag, moved, wanted, primal, dual_step, slack, dual, tilt):  # pragma: no cover (compiled)
    m, size = tilt.shape
    for j in range(len(slack)):
        for b in range(size):
            slack[j, b] += primal[b] * moved[j, b]
        for b in range(size):
            dual[j, b] *= dual_step[b] * wanted[j, b] + (1 - dual_step[b])
        if j < m:
            for b in range(size):
                tilt[j, b] += dual_step[b] * (chord[j, b] * moved[j, b] - lag[j, b])


@numba.njit(cache=True, **_OPTIONS)
def _cholesky(pairs, k, factors, scratch):  # pragma: no cover (compiled)
    """Entry (i, j ≤ i) of the lower triangle is row i(i+1)/2 + j."""
    size = pairs.shape[1]
    for i in range(k):
        row = i * (i + 1) // 2
        for j in range(i + 1):
            other = j * (j + 1) // 2
            for b in range(size):
                scratch[b] = pairs[row + j, b]
            for c in range(j):
                for b in range(size):
                    scratch[b] -= factors[row + c, b] * factors[other + c, b]
            if j < i:
                for b in range(size):
                    factors[row + j, b] = scratch[b] * factors[other + j, b]
            else:
                for b in range(size):
                    pivot = scratch[b]
                    pivot = pivot if pivot > PIVOT_NOISE * pairs[row + j, b] else DROPPED_PIVOT
                    factors[row + j, b] = 1 / np.sqrt(pivot)


@numba.njit(cache=True, **_OPTIONS)
def _cholesky_solve(factors, x):  # pragma: no cover (compiled)
    k, size = x.shape
    for i in range(k):
        row = i * (i + 1) // 2
        for c in range(i):
            for b in range(size):
                x[i, b] -= factors[row + c, b] * x[c, b]
        for b in range(size):
            x[i, b] *= factors[row + i, b]
    for i in range(k - 1, -1, -1):
        row = i * (i + 1) // 2
        for b in range(size):
            x[i, b] *= factors[row + i, b]
        for c in range(i):
            for b in range(size):
                x[c, b] -= factors[row + c, b] * x[i, b]
