"""The logit-query learner of Golowich, Liu and Shetty (arXiv:2512.09892, Algorithms 1–2, Theorem 5.11).

At every cut s a few spanner histories represent all others on a set F_s of words; the model of a prefix is
a chain of coefficients over them, c_(s+1) G_(s+1) = c_s H_(s,y_s) (`lrlm_sim.reconstruction`). The words
are found by closing F_s under what the next cut needs (`logit_cuts`) and by validation on fresh strings
(`logit_validation`); nothing is called a success before it passed at every cut (`logit_epochs`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from lrlm_sim.learners.base import Learner, Result, require_access
from lrlm_sim.learners.logit_constants import TheoryConstants, theory_constants
from lrlm_sim.learners.logit_epochs import Epochs, Settings
from lrlm_sim.learners.logit_noise import estimate_noise
from lrlm_sim.learners.logit_validation import SAMPLERS
from oracles.access import Access, LogitAccess
from oracles.checks import as_generator, as_integer, as_number
from oracles.errors import BudgetError, HorizonError, ParameterError, TooLargeError

Sampler = Literal["auto", "qr", "lp", "box", "ridge"]
Preset = Literal["practical", "theory"]

#: Order in which samplers are tried with exact answers (the first that passes ships) and with noise.
_EXACT_ORDER, _NOISY_ORDER = SAMPLERS, ("ridge", "box", "qr", "lp")
#: Smallest accepted discrepancy of exact answers (nats): rounding, amplified along the chain.
_EXACT_TOLERANCE = 1e-6
#: Discrepancy accepted per unit of noise.
_TOLERANCE_PER_NOISE = 30.0
#: Largest default tolerance (nats): beyond it agreement on a logit says nothing, however noisy the answers.
_LOOSEST_TOLERANCE = 1.0
#: Box on coefficients where the equations alone decide (exact answers): wide, but finite for the solvers.
_OPEN_BOX = 1e6
#: Most strings the theory preset draws or enumerates in one epoch.
_THEORY_STRINGS = 1_000_000


@dataclass(frozen=True)
class LogitQueryLearner(Learner):
    """Learner of low-logit-rank models from logit queries (arXiv:2512.09892, Theorem 5.11).

    Arguments:
        rank: directions to keep at every cut; None takes the numerical rank, the singular values above
            2ξ(√rows + √columns) and above 1e-10 of the largest. A given rank below it that
            fails validation is reported with the rank found.
        noise: bound ξ on the error of each answered log-probability (nats), or "estimate": read
            off the trailing singular values of a probe (`logit_noise`).
        closure: extend the word sets until the rows on F_s have the rank of the rows on F̃_s, in one
            sweep from the last cut to the first. Without it words come only from failed validations.
        sampler: method of `lrlm_sim.reconstruction`, or "auto": the best on separate fresh
            strings ("lp" only for chains of at most 200 coefficients). What is validated is what is returned.
        preset: "practical", or "theory": the constants of `theory_constants`; needs `rank` and
            `logit_bound`, and raises TooLargeError where an epoch would need over 10^6 strings.
        horizon: length of the strings to learn; None takes the teacher's.
        epochs: cap on epochs; None is 16, without closure 64 + 4·horizon.
        pool: histories per cut to begin with; doubled while the rank (given or found) exceeds half of them.
        max_pool: where doubling stops.
        exploration: share of the pool drawn uniformly at random rather than from the teacher.
        validation: fresh teacher strings per epoch; all must pass at every cut.
        selection: fresh strings on which "auto" compares samplers (with noise).
        tolerance: g, largest accepted discrepancy of a centred logit (nats); None is 30 ξ, at
            least 1e-6 and at most 1.
        spanner_bound: C > 1, bound on the coefficients of the pool over the spanner.
        box: bound on the coefficients of the chain; None is 2 C with noise, without noise 10^6.
        epsilon, delta, logit_bound: ε, δ and an integer bound on centred logits, for the theory
            preset and the bounds in `stats`.
    """

    rank: int | None = None
    noise: float | Literal["estimate"] = 0.0
    closure: bool = True
    sampler: Sampler = "auto"
    preset: Preset = "practical"
    horizon: int | None = None
    epochs: int | None = None
    pool: int = 32
    max_pool: int = 256
    exploration: float = 0.5
    validation: int = 64
    selection: int = 8
    tolerance: float | None = None
    spanner_bound: float = 2.0
    box: float | None = None
    epsilon: float = 0.1
    delta: float = 0.05
    logit_bound: int | None = None

    accesses = (LogitAccess,)

    def __post_init__(self) -> None:
        for name in ("rank", "horizon", "epochs", "logit_bound"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), 1)
        if isinstance(self.noise, str):
            if self.noise != "estimate":
                raise ParameterError(f"noise must be a number or 'estimate', got {self.noise!r}")
        else:
            as_number("noise", self.noise, 0)
        for name, known in (("sampler", get_args(Sampler)), ("preset", get_args(Preset))):
            if getattr(self, name) not in known:
                raise ParameterError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not isinstance(self.closure, bool):
            raise ParameterError(f"closure must be True or False, got {self.closure!r}")
        as_integer("pool", self.pool, 2)
        as_integer("max_pool", self.max_pool, self.pool)
        as_integer("validation", self.validation, 1)
        as_integer("selection", self.selection, 1)
        as_number("exploration", self.exploration, 0, 1)
        as_number("spanner_bound", self.spanner_bound, 1 + 1e-6)
        if self.tolerance is not None:
            as_number("tolerance", self.tolerance, 0)
        if self.box is not None:
            as_number("box", self.box, 1)
        as_number("epsilon", self.epsilon, 1e-12, 1)
        as_number("delta", self.delta, 1e-12, 1)
        if self.preset == "theory" and (self.rank is None or self.logit_bound is None):
            raise ParameterError("preset='theory' needs rank and logit_bound: its constants depend on them")

    def fit(self, access: Access, rng: np.random.Generator | int | None = None) -> Result:
        require_access(self, access)
        assert isinstance(access, LogitAccess)
        horizon, generator = self._horizon(access), as_generator(rng)
        if self.preset == "theory":
            constants = self._constants(horizon, access.vocab_size, 1, 1)
            run = Epochs(access, self._theory(constants, access.vocab_size), generator)
        else:
            run = self._practical(access, horizon, generator)
        model, status = run.run()
        return Result(model, status, access.ledger, self._stats(run, horizon, access))

    def _horizon(self, access: LogitAccess) -> int:
        horizon = self.horizon if self.horizon is not None else access.horizon
        if horizon is None:
            raise HorizonError("the teacher has no horizon: give LogitQueryLearner(horizon=…)")
        if access.horizon is not None and horizon > access.horizon:
            raise HorizonError(f"horizon = {horizon} is past the teacher's {access.horizon}")
        return horizon

    def _practical(self, access: LogitAccess, horizon: int, rng: np.random.Generator) -> Epochs:
        """A run with the practical settings; a noise probe shares its memory and its pool."""
        if self.noise != "estimate":
            return Epochs(access, self._settings(horizon, self.noise), rng)
        run = Epochs(access, self._settings(horizon, 0.0), rng)
        size = max(24, 4 * (self.rank or 0))
        try:
            noise = estimate_noise(run.pool, run.memory, horizon, access.vocab_size, size)
        except BudgetError as error:
            error.partial = run.partial()
            raise
        run.settings = self._settings(horizon, noise)
        return run

    def _settings(self, horizon: int, noise: float) -> Settings:
        tolerance = min(max(_TOLERANCE_PER_NOISE * noise, _EXACT_TOLERANCE), _LOOSEST_TOLERANCE)
        order = _NOISY_ORDER if noise > 0 else _EXACT_ORDER
        box = 2 * self.spanner_bound if noise > 0 else _OPEN_BOX
        return Settings(
            horizon=horizon,
            rank=self.rank,
            noise=noise,
            closure=self.closure,
            methods=order if self.sampler == "auto" else (self.sampler,),
            epochs=self.epochs or (16 if self.closure else 64 + 4 * horizon),
            pool=self.pool,
            max_pool=self.max_pool,
            exploration=self.exploration,
            exhaustive=False,
            validation=self.validation,
            selection=self.selection,
            tolerance=tolerance if self.tolerance is None else self.tolerance,
            spanner_bound=self.spanner_bound,
            box=box if self.box is None else self.box,
        )

    def _constants(self, horizon: int, vocab_size: int, rank: int, logit_bound: int) -> TheoryConstants:
        """Constants for the rank and bound given, else for those passed."""
        return theory_constants(
            horizon,
            self.rank or rank,
            self.logit_bound or logit_bound,
            self.epsilon,
            self.delta,
            vocab_size=vocab_size,
        )

    def _theory(self, constants: TheoryConstants, vocab_size: int) -> Settings:
        """The constants as settings. Where they fit, the sample size of a spanner exceeds the number of
        histories, so all are taken: nothing is left uncovered.
        """
        horizon = constants.horizon
        noise = constants.noise if self.noise == "estimate" else self.noise
        if noise > constants.noise:
            raise ParameterError(
                f"the theory preset tolerates answers off by {constants.noise:.3g}, noise is {noise:.3g}: "
                "use preset='practical'"
            )
        strings = vocab_size ** (horizon - 1)
        needed = min(strings, constants.histories(vocab_size + vocab_size**2)) + constants.validation
        if max(needed, strings) > _THEORY_STRINGS:
            raise TooLargeError(
                f"the theory preset needs {needed:.3g} strings per epoch (limit {_THEORY_STRINGS:.0e}) and "
                f"allows {constants.request_bound:.3g} requests in all: use preset='practical'"
            )
        return replace(
            self._settings(horizon, noise),
            closure=False,
            methods=("lp" if self.sampler == "auto" else self.sampler,),
            epochs=self.epochs or constants.epochs,
            pool=max(2, strings),
            max_pool=max(2, strings),
            exploration=0.0,
            exhaustive=True,
            validation=constants.validation,
            tolerance=constants.discrepancy,
            spanner_bound=2.0,
            box=2.0,
        )

    def _stats(self, run: Epochs, horizon: int, access: LogitAccess) -> dict[str, Any]:
        cuts, validation = run.cuts, run.validation
        assert validation is not None
        largest = max(float(np.abs(cut.rows).max(initial=0.0)) for cut in cuts)
        found = max(cut.found for cut in cuts)
        bounds = self._constants(horizon, access.vocab_size, max(1, found), max(1, math.ceil(largest)))
        per_cut = [0] * horizon
        for witness in run.witnesses:
            per_cut[witness.cut] += 1
        return {
            "epochs": len(run.reports),
            "epoch_reports": [report.as_dict() for report in run.reports],
            "ranks": [cut.rank for cut in cuts],
            "numerical_ranks": [cut.found for cut in cuts],
            "kept_over_dropped": [cut.gap for cut in cuts],
            "contexts": [len(contexts) for contexts in run.contexts],
            "words": [len(contexts) * access.vocab_size for contexts in run.contexts],
            "witness_words": per_cut,
            "witness_bound": bounds.words_per_cut,
            "witnesses": [vars(witness) for witness in run.witnesses],
            "spanner_coefficients": [cut.max_coefficient for cut in cuts],
            "histories": [cut.pool for cut in cuts],
            "sampler": run.sampler,
            "sampler_scores": run.scores,
            "validation_discrepancy": validation.worst,
            "validation_discrepancies": validation.discrepancy.max(axis=0),
            "validation_total_variation": float(validation.total_variation.mean()),
            "infeasible": run.infeasible,
            "tolerance": run.settings.tolerance,
            "noise": run.settings.noise,
            "logit_bound": largest,
            "requests": access.ledger.calls,
            "theory": bounds.as_dict(),
        }
