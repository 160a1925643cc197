"""`lrlm certify`: a total-variation interval from teacher queries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.runs import open_run
from lrlm_sim.distances import certify
from oracles import LogitAccess, open_oracle
from oracles.base import Oracle
from oracles.storage import read_metadata


def certificate(teacher: Oracle, model: Oracle, samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Certificate of `model` against `teacher` with the queries it cost, as a JSON-able record."""
    access = LogitAccess(teacher, seed=seed + 1)
    proof = certify(access, model, samples, confidence, seed)
    return {
        "interval": proof.interval,
        "method": proof.method,
        "ratio": proof.ratio,
        "telescoping": proof.telescoping,
        "ledger": proof.spent,
    }


def run_certify(
    screen: Screen,
    oracle: str,
    model: str,
    epsilon: float,
    samples: int,
    confidence: float,
    seed: int,
    out: Path | None,
) -> int:
    """Certify MODEL against ORACLE; status 0 if the interval's upper end is at most epsilon."""
    settings = {"oracle": oracle, "model": model, "epsilon": epsilon, "samples": samples}
    with open_run("certify", seed, out, settings | {"confidence": confidence}) as run:
        teacher, learned = open_oracle(oracle), open_oracle(model)
        with screen.step("asking the teacher"):
            record = certificate(teacher, learned, samples, confidence, seed)
        interval, ledger = record["interval"], record["ledger"]
        certified = interval.high <= epsilon
        run.record(certificate=record, verdict="certified" if certified else "not certified")
        screen.table(
            f"total variation of {model} from {oracle}",
            ("estimate", "low", "high", "confidence", "strings", "calls", "tokens"),
            [
                (
                    interval.estimate,
                    interval.low,
                    interval.high,
                    confidence,
                    interval.n,
                    ledger.calls,
                    ledger.submitted_tokens + ledger.generated_tokens,
                )
            ],
        )
        stored = _stored_interval(model)
        if stored is not None:
            agrees = stored["low"] <= interval.high and interval.low <= stored["high"]
            run.record(stored_certificate=stored, agrees_with_stored=agrees)
            words = "agrees with" if agrees else "contradicts"
            saved = f"[{stored['low']:.4g}, {stored['high']:.4g}]"
            screen.say(f"this {words} the certificate saved with the model: {saved}")
            certified = certified and agrees
        screen.say(f"{run.manifest['verdict']} at epsilon = {epsilon:g}; run folder {run.folder}")
        screen.finish(run.manifest)
    return 0 if certified else 1


def _stored_interval(model: str) -> dict[str, float] | None:
    """The interval saved with a model by `lrlm learn`; None for other models."""
    if not model.endswith(".safetensors"):
        return None
    stored = read_metadata(model).get("certificate")
    return None if stored is None else stored["interval"]
