"""The epochs of the logit-query learner: sample, close, span, validate; repeat with what was learned.

Kept between epochs: every answered row, the pool of histories, the future sets F_s, and the strings on
which a model failed (they join the pool, so the next spanner covers them). Never kept: validation
strings, each epoch draws new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lrlm_sim.learners.base import SUCCESS, Status
from lrlm_sim.learners.logit_cuts import Cut, Spectrum, close, span
from lrlm_sim.learners.logit_rows import Context, HistoryPool, RowMemory
from lrlm_sim.learners.logit_validation import Validation, Witness, choose_sampler, find_witness, validate
from lrlm_sim.reconstruction import Chain, ReconstructionModel
from oracles.access import LogitAccess
from oracles.errors import BudgetError

#: Chains with more coefficients than this are not tried with "lp": each token is a linear program.
_LP_UNKNOWNS = 200
#: Failing strings searched for witness words in one epoch.
_SEARCHED = 16


@dataclass(frozen=True)
class Settings:
    """Everything an epoch needs to know, all numbers decided.

    `noise` bounds the error ξ of an answered log-probability, `tolerance` is the threshold g, `methods`
    are the samplers to choose from, in order. The rest as in `LogitQueryLearner`.
    """

    horizon: int
    rank: int | None
    noise: float
    closure: bool
    methods: tuple[str, ...]
    epochs: int
    pool: int
    max_pool: int
    exploration: float
    exhaustive: bool
    validation: int
    selection: int
    tolerance: float
    spanner_bound: float
    box: float


@dataclass(frozen=True)
class EpochReport:
    """Numbers of one epoch, as they appear in `Result.stats`."""

    epoch: int
    sampler: str
    discrepancy: float
    infeasible: int
    failing: int
    witnesses: int
    words_added: int
    ranks: list[int]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


@dataclass
class Epochs:
    """One run: the state that survives from epoch to epoch, and the loop."""

    access: LogitAccess
    settings: Settings
    rng: np.random.Generator
    contexts: list[list[Context]] = field(init=False)
    cuts: list[Cut] = field(default_factory=list)
    reports: list[EpochReport] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    validation: Validation | None = None
    sampler: str = ""
    infeasible: int = 0

    def __post_init__(self) -> None:
        chosen = self.settings
        self.contexts = [[()] for _ in range(chosen.horizon)]
        self.memory = RowMemory(self.access)
        self.pool = HistoryPool(self.access, chosen.horizon, chosen.exploration, self.rng, chosen.exhaustive)

    def run(self) -> tuple[ReconstructionModel, Status]:
        """Epochs until a model passes validation at every cut, the cap, or a reason to stop."""
        epoch = 0
        try:
            while True:
                epoch += 1
                model, failing = self._epoch(epoch)
                status = self._judge(epoch, len(failing))
                if status is not None:
                    return model, status
        except BudgetError as error:
            error.partial = self.partial()
            raise

    def partial(self) -> dict[str, Any]:
        """What is known when a budget ends."""
        return {
            "epochs": [report.as_dict() for report in self.reports],
            "cuts_learned": sorted(cut.position for cut in self.cuts),
            "ranks": [cut.rank for cut in sorted(self.cuts, key=lambda cut: cut.position)],
            "contexts": [list(contexts) for contexts in self.contexts],
        }

    def _epoch(self, epoch: int) -> tuple[ReconstructionModel, np.ndarray]:
        words = sum(map(len, self.contexts))
        self._learn_cuts()
        chain = self._chain()
        self._choose(chain)
        model = ReconstructionModel.from_chain(chain, self.sampler)
        strings = self.access.sample(self.settings.validation, length=self.settings.horizon)
        self.validation = validate(chain, model, strings, self.memory, self.sampler, self.settings.tolerance)
        self.infeasible += self.validation.infeasible
        failing = self.validation.failing(self.settings.tolerance)
        found: list[Witness] = []
        if len(failing):
            found, unexplained = self._search(chain, strings, failing)
            self.pool.add(strings[failing if self.settings.closure else unexplained][: self.settings.pool])
        self.reports.append(
            EpochReport(
                epoch=epoch,
                sampler=self.sampler,
                discrepancy=self.validation.worst,
                infeasible=self.validation.infeasible,
                failing=len(failing),
                witnesses=len(found),
                words_added=sum(map(len, self.contexts)) - words,
                ranks=[cut.rank for cut in self.cuts],
            )
        )
        return model, failing

    def _learn_cuts(self) -> None:
        """All cuts from the last to the first, each extending the futures of the one after it."""
        self.cuts = []
        patient = True
        for position in reversed(range(self.settings.horizon)):
            cut = self._learn_cut(position, self.settings.max_pool if patient else self.settings.pool)
            # Once a rank cannot be told, doubling the pool at every other cut is a waste.
            patient &= cut.resolved or self.settings.rank is not None
            self.cuts.append(cut)
        self.cuts.reverse()

    def _learn_cut(self, position: int, max_pool: int) -> Cut:
        chosen, size = self.settings, self.settings.pool
        extended = self._extended(position)
        while True:
            histories = self.pool.prefixes(position, size)
            grid = self.memory.grid(histories, extended)
            spectrum = Spectrum.of(grid, chosen.noise)
            wanted = 2 * (chosen.rank or spectrum.found)
            everything = len(histories) == self.access.vocab_size**position
            if wanted <= len(histories) or everything or size >= max_pool:
                break
            size = min(2 * size, max_pool)
        rank = min(spectrum.kept(chosen.rank), len(histories))
        if chosen.closure:
            places = [extended.index(context) for context in self.contexts[position]]
            self.contexts[position] = [extended[i] for i in close(spectrum, rank, places)]
        resolved = everything or 2 * spectrum.found <= len(histories)
        projected = chosen.noise > 0 or rank < spectrum.found
        return span(
            position, histories, extended, grid, spectrum, rank, chosen.spanner_bound, projected, resolved
        )

    def _extended(self, position: int) -> list[Context]:
        """Contexts of F̃_s: those of F_s, and z∘f for every token z and context f of F_(s+1)."""
        contexts = dict.fromkeys(self.contexts[position])
        if position + 1 < self.settings.horizon:
            after = self.contexts[position + 1]
            contexts |= dict.fromkeys(
                (token, *context) for token in range(self.access.vocab_size) for context in after
            )
        return list(contexts)

    def _chain(self) -> Chain:
        vocab_size, cuts = self.access.vocab_size, self.cuts
        moves = tuple(
            np.stack([cut.on([(token, *context) for context in contexts]) for token in range(vocab_size)])
            for cut, contexts in zip(cuts[:-1], self.contexts[1:], strict=True)
        )
        return Chain(
            futures=tuple(
                cut.on(contexts) for cut, contexts in zip(cuts[1:], self.contexts[1:], strict=True)
            ),
            moves=moves,
            readouts=tuple(cut.on([()]) for cut in cuts),
            box=self.settings.box,
            noise=entry_noise(self.settings.noise, vocab_size),
        )

    def _choose(self, chain: Chain) -> None:
        methods = self.settings.methods
        exact = self.settings.noise == 0 and all(cut.rank >= cut.found for cut in self.cuts)
        if self.settings.rank is None and not all(cut.resolved for cut in self.cuts):
            methods = methods[:1]  # the model is for diagnosis only
        elif exact and not self.reports:
            methods = methods[:1]  # all exact methods agree: if validation passes, there is nothing to choose
        elif sum(chain.widths) > _LP_UNKNOWNS:
            methods = tuple(m for m in methods if m != "lp") or methods
        self.sampler, self.scores = methods[0], {}
        if len(methods) > 1:
            strings = self.access.sample(self.settings.selection, length=self.settings.horizon)
            self.sampler, self.scores = choose_sampler(
                chain, methods, strings, self.memory, self.settings.tolerance
            )

    def _search(
        self, chain: Chain, strings: np.ndarray, failing: np.ndarray
    ) -> tuple[list[Witness], list[int]]:
        """Witness words, at most one per cut, taken into F_s; and the failing strings without one."""
        assert self.validation is not None
        best: dict[int, Witness] = {}
        unexplained: list[int] = []
        for row in failing[:_SEARCHED].tolist():
            witness = self._witness(chain, strings[row], row)
            if witness is None or not self.validation.feasible[row]:
                unexplained.append(row)
            if witness is not None and (witness.cut not in best or witness.gap > best[witness.cut].gap):
                best[witness.cut] = witness
        for witness in best.values():
            self.contexts[witness.cut].append(witness.context)
        self.witnesses.extend(best.values())
        return list(best.values()), unexplained

    def _witness(self, chain: Chain, string: np.ndarray, row: int) -> Witness | None:
        """New word that the first wrong prediction along a string calls for."""
        assert self.validation is not None
        errors = self.validation.discrepancy[row]
        wrong = np.flatnonzero(~(errors <= self.settings.tolerance))
        if not len(wrong) or not np.isfinite(errors[wrong[0]]):
            return None
        t = int(wrong[0])
        spanners = [cut.histories for cut in self.cuts]
        token = int(self.validation.worst_token[row, t])
        witness = find_witness(chain, spanners, string[:t], token, self.memory, self.sampler)
        known = witness is None or witness.context in self.contexts[witness.cut]
        return None if known else witness

    def _judge(self, epoch: int, failing: int) -> Status | None:
        """Success, a reason to stop, or None: another epoch may help."""
        if not failing:
            return SUCCESS
        widest = max(self.cuts, key=lambda cut: cut.found)
        if self.settings.rank is None and not widest.resolved:
            return Status(
                "not_accepted",
                f"the rank at cut {widest.position} cannot be told: {widest.found} directions among "
                f"{widest.pool} histories. State the error of the answers in noise (or noise='estimate'), "
                "or raise max_pool",
            )
        if self.settings.rank is not None and widest.found > self.settings.rank:
            found = f"{widest.found}" if widest.resolved else f"at least {widest.found}"
            return Status(
                "rank_too_small",
                f"the logit matrices have numerical rank {found}: raise rank, "
                "or state the error of the answers in noise",
            )
        return self._not_accepted() if epoch == self.settings.epochs else None

    def _not_accepted(self) -> Status:
        last = self.reports[-1]
        return Status(
            "not_accepted",
            f"after {last.epoch} epochs logits on fresh strings are off by {last.discrepancy:.2g} nats "
            f"(accepted: {self.settings.tolerance:.2g}) and {last.infeasible} of {self.settings.validation} "
            "are infeasible: state the oracle's error in noise, raise pool, or allow more epochs",
        )


def entry_noise(noise: float, vocab_size: int) -> float:
    """Error bound 2ξ(1 − 1/A) of a centred logit whose log-probabilities are off by at most ξ."""
    return 2 * noise * (1 - 1 / vocab_size)
