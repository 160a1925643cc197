"""`lrlm learn`: a teacher learned from queries, certified and saved."""

from __future__ import annotations

import json
from pathlib import Path

from lrlm_sim.cli.certify import certificate
from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.runs import open_run, plain
from lrlm_sim.learners import make_access, open_learner
from oracles import open_oracle
from oracles.errors import BudgetError
from oracles.storage import save


def run_learn(
    screen: Screen,
    oracle: str,
    learner: str,
    epsilon: float,
    noise: float,
    budget: int | None,
    samples: int,
    confidence: float,
    seed: int,
    out: Path | None,
) -> int:
    """Learn ORACLE, certify, save; status 0 only if the learner succeeded and TV ≤ epsilon is certified."""
    settings = {"oracle": oracle, "learner": learner, "epsilon": epsilon, "noise": noise, "budget": budget}
    with open_run("learn", seed, out, settings | {"samples": samples, "confidence": confidence}) as run:
        teacher, algorithm = open_oracle(oracle), open_learner(learner)
        access = make_access(algorithm, teacher, budget=budget, noise=noise or None, seed=seed)
        try:
            with screen.step(f"learning from {type(access).__name__}"):
                result = algorithm.fit(access, seed)
        except BudgetError as error:
            run.record(ledger=error.ledger, partial=error.partial)
            raise
        run.record(status=str(result.status), ledger=result.ledger, stats=result.stats)
        with screen.step("certifying"):
            record = certificate(teacher, result.model, samples, confidence, seed)
        interval = record["interval"]
        certified = result.status.ok and interval.high <= epsilon
        kept = {"oracle": oracle, "learner": learner, "confidence": confidence, "seed": seed}
        proof = json.loads(json.dumps(record, default=plain))
        path = save(result.model, run.folder / "model.safetensors", kept | {"certificate": proof})
        verdict = "certified" if certified else "not certified"
        run.record(certificate=record, model=path.name, verdict=verdict)
        ledger = result.ledger
        screen.table(
            f"{oracle} learned by {learner}",
            ("learner", "calls", "distinct prefixes", "TV estimate", "TV low", "TV high", "confidence"),
            [
                (
                    result.status.code,
                    ledger.calls,
                    ledger.distinct_prefixes,
                    interval.estimate,
                    interval.low,
                    interval.high,
                    confidence,
                )
            ],
        )
        if not result.status.ok:
            screen.say(str(result.status))
        screen.say(f"{verdict} at epsilon = {epsilon:g}; model and manifest in {run.folder}")
        screen.finish(run.manifest)
    return 0 if certified else 1
