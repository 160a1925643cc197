"""`lrlm demo`: the whole loop in minutes, offline.

(a) Two teachers, a hidden Markov model and a low-logit-rank model, are learned from logit queries; the
total variation of what was learned is computed exactly and certified from teacher queries alone.
(b) The bundled transformer, trained on Python source, is measured as the papers measure real models:
singular values of its extended logit matrix against those of the same network before training.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lrlm_sim.cli.certify import certificate
from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.plots import plot_certificates, plot_kl, plot_spectra
from lrlm_sim.cli.runs import Run, open_run
from lrlm_sim.cli.spectrum import Spectrum, measure
from lrlm_sim.corpus import encode, histories_and_futures, likely_tokens, standard_library_text, token_windows
from lrlm_sim.distances import total_variation
from lrlm_sim.learners import ISANExtraction
from oracles import LogitAccess, open_oracle
from oracles.bundled import INITIAL, TRAINED
from oracles.errors import MissingDependencyError
from oracles.storage import save

_TEACHERS = {
    "hidden Markov": "hmm:n_states=3,vocab_size=3,horizon=6,seed={seed}",
    "low logit rank": "isan:width=4,vocab_size=4,horizon=8,seed={seed}",
}
_CONFIDENCE = 0.99
_N, _HISTORY, _FUTURE, _KEPT, _FIRST = 200, 16, 16, 50, 5


def run_demo(screen: Screen, seed: int, out: Path | None) -> int:
    """Run both halves; status 0 only if every teacher was learned and certified."""
    for package, extra in (("matplotlib", "analysis"), ("torch", "transformers")):
        if find_spec(package) is None:
            raise MissingDependencyError(package, extra)
    with open_run("demo", seed, out, {}) as run:
        learned = _learn_teachers(screen, run, seed)
        run.record(teachers=learned)
        _measure_transformer(screen, run, seed)
        done = all(row["certified"] for row in learned.values())
        run.record(verdict="done" if done else "not certified")
        screen.say(f"tables, plots and manifest in {run.folder}")
        screen.finish(run.manifest)
    return 0 if done else 1


def _learn_teachers(screen: Screen, run: Run, seed: int) -> dict[str, dict[str, Any]]:
    records, bars = {}, []
    for name, spec in _TEACHERS.items():
        teacher = open_oracle(spec.format(seed=seed))
        access = LogitAccess(teacher, seed=seed)
        with screen.step(f"learning the {name} teacher from logit queries"):
            result = ISANExtraction().fit(access, seed)
            exact = total_variation(teacher, result.model)
        with screen.step(f"certifying the {name} teacher"):
            proof = certificate(teacher, result.model, 2000, _CONFIDENCE, seed)
        interval = proof["interval"]
        save(result.model, run.folder / f"{name.replace(' ', '_')}.safetensors")
        bars.append((name, exact, interval.estimate, interval.low, interval.high))
        records[name] = {
            "teacher": spec.format(seed=seed),
            "status": str(result.status),
            "ranks": result.stats["ranks"],
            "ledger": result.ledger,
            "exact_tv": exact,
            "certificate": interval,
            "certified": result.status.ok and interval.low <= exact <= interval.high,
        }
    screen.table(
        "teachers learned from logit queries",
        ("teacher", "logit ranks by cut", "logit queries", "exact TV", f"certified at {_CONFIDENCE:.0%}"),
        [
            (
                name,
                " ".join(map(str, row["ranks"])),
                row["ledger"].calls,
                row["exact_tv"],
                f"[{row['certificate'].low:.2g}, {row['certificate'].high:.2g}]",
            )
            for name, row in records.items()
        ],
    )
    plot_certificates(run.folder / "certificates.png", bars)
    return records


def _measure_transformer(screen: Screen, run: Run, seed: int) -> None:
    trained, initial = open_oracle(TRAINED), open_oracle(INITIAL)
    tokenizer = trained.tokenizer  # type: ignore[attr-defined]
    tokens = encode(tokenizer, standard_library_text(), trained.vocab_size)
    windows = token_windows(tokens, _HISTORY + _FUTURE)
    histories, futures = histories_and_futures(windows, _N, _HISTORY, _FUTURE, seed)
    spectra: dict[str, Spectrum] = {}
    for name, model in {"trained": trained, "step 0": initial}.items():
        with screen.step(f"{_N} × {_N} extended logits of the {name} transformer"):
            kept = likely_tokens(model, futures, _KEPT)
            spectra[name] = measure(model, histories, futures, kept, (_FIRST, _N // 2))
    span = spectra["trained"].span
    run.record(
        transformer={
            name: {"alpha": s.fit[0], "r2": s.fit[2], "ranks": s.ranks, "kl": s.kl, "bound": s.bound}
            for name, s in spectra.items()
        },
        fitted_range=span,
        matrix={
            "histories": _N,
            "futures": _N,
            "history_length": _HISTORY,
            "future_length": _FUTURE,
            "tokens": _KEPT,
        },
    )
    for name, spectrum in spectra.items():
        np.save(
            run.folder / f"singular_values_{name.replace(' ', '_')}.npy", spectrum.sigma, allow_pickle=False
        )
    plot_spectra(
        run.folder / "spectra.png",
        {n: s.sigma for n, s in spectra.items()},
        {n: s.fit for n, s in spectra.items()},
        span,
    )
    ranks = spectra["trained"].ranks
    plot_kl(
        run.folder / "kl.png",
        ranks,
        {n: s.kl for n, s in spectra.items()},
        {n: s.bound for n, s in spectra.items()},
    )
    screen.table(
        f"bundled transformer, {_N} × {_N} histories and futures of {_HISTORY} tokens, {_KEPT} tokens kept",
        ("model", f"alpha on [{span[0]}, {span[1]}]", "R²", *(f"KL at rank {r}" for r in ranks[::2])),
        [(name, s.fit[0], s.fit[2], *s.kl[::2].tolist()) for name, s in spectra.items()],
    )
