"""Alias tables (Walker 1977, Vose 1991): one uniform number and two look-ups per draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class AliasTable:
    """Tables for many laws at once: column j of law i is kept with probability threshold[i, j] − j."""

    threshold: Float[np.ndarray, "laws_times_outcomes"]
    alias: Int[np.ndarray, "laws_times_outcomes"]
    outcomes: int

    @classmethod
    def build(cls, laws: Float[np.ndarray, "laws outcomes"]) -> AliasTable:
        """Vose's construction for each row of `laws`, O(outcomes) per law."""
        count, outcomes = laws.shape
        threshold = np.ones((count, outcomes))
        alias = np.tile(np.arange(outcomes), (count, 1))
        for row, law in enumerate(laws):
            scaled = (law * outcomes).tolist()
            small = [j for j, value in enumerate(scaled) if value < 1]
            large = [j for j, value in enumerate(scaled) if value >= 1]
            while small and large:
                low, high = small.pop(), large[-1]
                threshold[row, low], alias[row, low] = scaled[low], high
                scaled[high] -= 1 - scaled[low]
                if scaled[high] < 1:
                    small.append(large.pop())
            for j in small:  # rounding leftovers: full columns, except that impossible outcomes stay so
                if law[j] <= 0:
                    threshold[row, j], alias[row, j] = 0.0, int(np.argmax(law))
        return cls((threshold + np.arange(outcomes)).ravel(), alias.ravel(), outcomes)

    def draw(
        self,
        rows: Int[np.ndarray, "n"],
        uniforms: Float[np.ndarray, "n"],
        out: Int[np.ndarray, "n"] | None = None,
    ) -> Int[np.ndarray, "n"]:
        """One outcome from law `rows[i]` for each uniform number in [0, 1), into `out` if given."""
        position = uniforms * self.outcomes
        column = position.astype(np.int64)
        slot = rows * self.outcomes
        slot += column
        drawn = self.alias.take(slot, out=out, mode="clip")
        np.copyto(drawn, column, where=position < self.threshold.take(slot))
        return drawn
