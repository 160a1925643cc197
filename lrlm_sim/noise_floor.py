"""Where singular values of a network's logits sink into its rounding noise.

A network in half or single precision answers L + E, E its rounding errors. Singular values move by at most
‖E‖₂ (Weyl), and those of L below it cannot be seen. E is measured on a small sample of cells (histories ×
futures) of the matrix at hand, in one of two ways:

- ``"reference"``: against the same weights computed in a wider precision, float64 for float32 and float32
  for half precision: E = answer − reference;
- ``"batches"``: against the same cells asked one by one: E = difference/√2, the other batch being as wrong
  as the first. Errors that both share are not seen, so this is a lower bound; it needs no second model.

With s the root mean square of E per entry, the matrix n × N has two floors:

- `floor` = s (√n + √N): the largest singular value of independent errors of that size (Davidson, Szarek
  2001). Measured errors of small transformers lie within 1.4 of it, but for their first direction or two.
- `worst` = σ_1(E on the sample) · √(n N / sample entries): what ‖E‖₂ is if all of E were that one direction.
  Singular values above it are those of L up to `worst`; between the two floors noise may hide one or two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from lrlm_sim.logit_stream import LogitStream, ShowsStates
from oracles.base import Oracle
from oracles.checks import as_integer

Method = Literal["reference", "batches"]
#: Weights of a reference model are held beside the model's own: above so many, batches are compared.
MAX_PARAMETERS = 200_000_000


@dataclass(frozen=True)
class NoiseFloor:
    """Rounding noise of one matrix, absolute, in units of its singular values.

    Attributes:
        method: how the model's errors were found; "exact" for models computed in float64 throughout.
        entry: s, root mean square error of one logit by the network's rounding.
        storage: the same by the rounding of blocks on disk. arithmetic: error of the factorisation.
        floor, worst: see the module; the larger of the model's and the others'.
        sample: (histories, futures) measured.
    """

    method: Literal["reference", "batches", "exact"]
    entry: float
    storage: float
    arithmetic: float
    floor: float
    worst: float
    sample: tuple[int, int]

    def sinks(self, sigma: Float[np.ndarray, "rank"]) -> int | None:
        """First index i (from 1) with σ_i ≤ floor; None if all stand above."""
        return _first_below(sigma, self.floor)

    def certain(self, sigma: Float[np.ndarray, "rank"]) -> int:
        """Number of leading singular values above the worst case of the noise."""
        below = _first_below(sigma, self.worst)
        return len(sigma) if below is None else below - 1


def noise_floor(
    stream: LogitStream,
    columns: int,
    arithmetic: float = 0.0,
    scale: float = 0.0,
    sample: int = 10,
    method: Method | None = None,
) -> NoiseFloor:
    """Noise of the matrix of a stream with `columns` columns, measured on `sample` × `sample` cells.

    Arguments:
        arithmetic: absolute error of the factorisation. scale: root mean square of the matrix' entries,
            by which blocks in float32 round.
        method: None takes "reference" for models of at most `MAX_PARAMETERS` weights, else "batches".

    Models that are not networks are computed in float64: their method is "exact", their entry error 0.
    """
    n = len(stream.histories)
    storage = scale * 2.0**-24 / np.sqrt(3) if stream.dtype == np.float32 else 0.0
    spread = np.sqrt(n) + np.sqrt(columns)
    ground = max(float(arithmetic), storage * spread)
    if not isinstance(stream.oracle, ShowsStates):
        return NoiseFloor("exact", 0.0, storage, float(arithmetic), ground, ground, (0, 0))
    heads = min(as_integer("sample", sample, 2), n)
    tails = min(sample, len(stream.futures))
    chosen = method or ("reference" if _parameters(stream.oracle) <= MAX_PARAMETERS else "batches")
    errors = _errors(stream, heads, tails, chosen).reshape(heads, -1)
    entry = float(np.sqrt(np.square(errors).mean()))
    top = float(np.linalg.svd(errors, compute_uv=False)[0]) * np.sqrt(n * columns / errors.size)
    floor = max(ground, entry * spread)
    return NoiseFloor(chosen, entry, storage, float(arithmetic), floor, max(floor, top), (heads, tails))


def wider(oracle: Oracle) -> Oracle:
    """The same weights as another `TransformerOracle`, computed in a wider precision on the CPU.

    Half precisions go to float32, float32 to float64. Weights are copied: they are held twice meanwhile.
    """
    import torch

    from oracles.transformer import TransformerOracle

    network: Any = oracle
    dtype = torch.float64 if network.model.dtype == torch.float32 else torch.float32
    model = copy.deepcopy(network.model).to("cpu", dtype)
    start = "none" if network.bos_token_id is None else network.bos_token_id
    return TransformerOracle(model, network.tokenizer, horizon=network.horizon, bos_token_id=start)


def _errors(
    stream: LogitStream, heads: int, tails: int, method: Method
) -> Float[np.ndarray, "heads tails tokens"]:
    rows, futures = slice(0, heads), slice(0, tails)
    found = stream.cells(stream.oracle, rows, futures)
    if method == "reference":
        difference = found - stream.cells(wider(stream.oracle), rows, futures)
    else:
        difference = (found - _one_by_one(stream.cells, stream.oracle, heads, tails)) / np.sqrt(2)
    return difference if stream.expand is None else difference @ stream.expand.T


def _one_by_one(
    cells: Callable[[Oracle, slice, slice], np.ndarray], oracle: Oracle, heads: int, tails: int
) -> np.ndarray:
    grid = [
        [cells(oracle, slice(h, h + 1), slice(f, f + 1))[0, 0] for f in range(tails)] for h in range(heads)
    ]
    return np.array(grid)


def _parameters(oracle: Any) -> int:
    return sum(weight.numel() for weight in oracle.model.parameters())


def _first_below(sigma: Float[np.ndarray, "rank"], floor: float) -> int | None:
    below = np.flatnonzero(sigma <= floor)
    return int(below[0]) + 1 if len(below) else None
