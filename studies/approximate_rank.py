"""Teachers of approximately low logit rank: distance against the rank kept, samplers on the same strings.

Two teachers: an ISAN of width 3 whose logits are moved by up to 0.1 nats (`perturbed`), and the bundled
transformer. All next-token logits after all contexts are out of reach for its 1024 tokens, so `restricted`
keeps the k tokens that are most probable on average and renormalises: a language model of its own, with the
transformer's computation inside. One epoch each: validation cannot repair a model of too small a rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrlm_sim.cli.plots import new_figure
from lrlm_sim.learners import LogitQueryLearner
from lrlm_sim.reconstruction import Chain, ReconstructionModel, reconstruct
from lrlm_sim.sampled_distance import laws_along, row_kl, total_variation_terms
from oracles import ISAN, LogitAccess, Oracle, open_oracle, perturbed, restricted
from oracles.cache import MemoryCache
from studies.common import Study, begin

METHODS = ("lp", "qr", "box", "ridge")
#: Compared string by string: joint against sequential and ridge, and the two joint forms.
PAIRS = (("lp", "box"), ("lp", "ridge"), ("qr", "box"), ("qr", "ridge"), ("lp", "qr"))
#: What the learner is told: logits are off by this much from a law of the rank it keeps (nats).
NOISE = {"perturbed ISAN": 0.1, "bundled transformer": 0.05}


def frequent_tokens(oracle: Oracle, count: int, length: int) -> np.ndarray:
    """The tokens of largest probability, averaged over all positions of 64 strings."""
    strings = oracle.sample(64, rng=0, length=length)
    mean = sum(np.exp(rows).mean(axis=0) for rows in laws_along(oracle, strings))
    return np.sort(np.argsort(-mean, kind="stable")[:count])


def teachers(study: Study) -> dict[str, Oracle]:
    """Name and teacher."""
    horizon = study.choose(10, 4)
    found: dict[str, Oracle] = {"perturbed ISAN": perturbed(ISAN.random(3, 4, horizon, 0), 0.1, seed=3)}
    if not study.quick:
        bundled = open_oracle("bundled")
        found["bundled transformer"] = restricted(bundled, frequent_tokens(bundled, 6, horizon), horizon)
    return found


def distances(teacher: Oracle, model: Oracle, strings: np.ndarray) -> tuple[np.ndarray, float]:
    """max(0, 1 − Q/P) of every string of the teacher, whose mean is TV; and KL in nats per token."""
    log_p, log_q, kl = np.zeros(len(strings)), np.zeros(len(strings)), 0.0
    rows = np.arange(len(strings))
    pairs = zip(laws_along(teacher, strings), laws_along(model, strings), strict=True)
    for t, (p, q) in enumerate(pairs):
        log_p += p[rows, strings[:, t]]
        log_q += q[rows, strings[:, t]]
        kl += float(row_kl(p, q).mean())
    return total_variation_terms(log_p, log_q), kl / strings.shape[1]


def mean_and_error(terms: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(terms.mean()), float(terms.std() / np.sqrt(len(terms)))


def look_back(teacher: Oracle, chain: Chain, strings: np.ndarray, method: str) -> list[float]:
    """Error of the logits at the middle cut, c_s B_s, once c_s was solved with 0, 1, 2, … later tokens.

    Root mean square, nats. The sequential forms never revise c_s; the joint ones do, for better or worse.
    """
    cut = strings.shape[1] // 2
    laws = teacher.next_log_probs(strings[:, :cut])
    truth = laws - laws.mean(axis=1, keepdims=True)
    errors = []
    for length in range(cut, strings.shape[1]):
        solved = reconstruct(chain, strings[:, :length], method).coefficients[cut]
        errors.append(float(np.sqrt(np.square(solved @ chain.readouts[cut] - truth).mean())))
    return errors


def verdict(mean: float, error: float) -> str:
    """Mean difference, and whether the first method wins, loses or ties at two standard errors."""
    word = "ties" if abs(mean) <= 2 * error else "wins" if mean < 0 else "loses"
    return f"{mean:+.3f} ± {error:.3f} {word}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table and the figure of distance against rank, for every sampler."""
    study = begin("approximate_rank", argv)
    ranks, size = study.choose((1, 2, 3, 4, 6, 8, 12, 16), (2, 3)), study.choose(120, 20)
    rows: list[tuple[object, ...]] = []
    pairs: list[tuple[object, ...]] = []
    backward: list[tuple[object, ...]] = []
    curves: dict[tuple[str, int, str], tuple[float, float, float]] = {}
    for name, teacher in teachers(study).items():
        strings, cache = teacher.sample(size, rng=9, length=teacher.horizon), MemoryCache()
        for rank in ranks:
            access = LogitAccess(teacher, seed=1, cache=cache if teacher.identity else None)
            learner = LogitQueryLearner(
                rank=rank,
                noise=NOISE[name],
                sampler="box",
                epochs=1,
                pool=max(16, 2 * rank),
                max_pool=64,
                validation=32,
            )
            result = learner.fit(access, rng=1)
            assert isinstance(result.model, ReconstructionModel)
            chain = result.model.chain
            if rank == study.choose(12, 3):
                for method in ("lp", "qr", "box"):
                    errors = look_back(teacher, chain, strings, method)
                    backward.append((name, method, rank, errors[0], errors[len(errors) // 2], errors[-1]))
            terms = {}
            for method in METHODS:
                model = ReconstructionModel.from_chain(chain, method)
                terms[method], kl = distances(teacher, model, strings)
                curves[name, rank, method] = (*mean_and_error(terms[method]), kl)
            paired = [(a, b, *mean_and_error(terms[a] - terms[b])) for a, b in PAIRS]
            pairs.append((name, rank, *(verdict(mean, error) for *_, mean, error in paired)))
            residual = [
                float(reconstruct(chain, strings[:, :-1], method).residual.mean()) for method in ("qr", "box")
            ]
            cells = [curves[name, rank, method] for method in METHODS]
            found = [f"{tv:.3f} ± {error:.3f}" for tv, error, _ in cells]
            told = *residual, result.status.code
            rows.append((name, rank, *found, *(kl for *_, kl in cells), *told))
    headers = ["teacher", "rank", *(f"TV {m}" for m in METHODS), *(f"KL/token {m}" for m in METHODS)]
    study.table("samplers", [*headers, "residual qr", "residual box", "status"], rows)
    study.table("paired", ["teacher", "rank", *(f"TV {a} − TV {b}" for a, b in PAIRS)], pairs)
    headers = ["teacher", "method", "rank", "error when reached", "halfway", "after the whole string"]
    study.table("look_back", headers, backward)
    draw(study, curves)
    study.manifest(ranks=ranks, strings=size, noise=NOISE, seeds="teachers 0 and 3, learner 1, strings 9")


def draw(study: Study, curves: dict[tuple[str, int, str], tuple[float, float, float]]) -> None:
    """TV (upper panels) and KL per token (lower panels) against rank."""
    names = list(dict.fromkeys(name for name, *_ in curves))
    figure, _ = new_figure(4.8 * len(names), 6.4)
    figure.clear()
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for column, name in enumerate(names):
        for method in METHODS:
            points = [(r, *value) for (n, r, m), value in curves.items() if (n, m) == (name, method)]
            rank, tv, error, kl = np.array(points).T
            panels[0, column].errorbar(rank, tv, error, fmt="o-", markersize=4, label=method)
            panels[1, column].loglog(rank, np.maximum(kl, 1e-9), "o-", markersize=4, label=method)
        panels[0, column].set(title=name, ylabel="total variation", ylim=(0, None), xscale="log")
        panels[1, column].set(xlabel="rank kept", ylabel="KL (nats per token)")
        panels[0, column].legend(fontsize="small")
    study.figure("samplers", figure)


if __name__ == "__main__":
    main()
