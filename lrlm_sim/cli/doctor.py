"""`lrlm doctor`: what is installed, what works, and what to install for the rest."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.runs import installed_versions
from lrlm_sim.distances import total_variation
from lrlm_sim.learners import ISANExtraction
from lrlm_sim.testing import check_oracle
from oracles import LogitAccess, open_oracle
from oracles.bundled import TRAINED
from oracles.errors import LrlmError

_EXTRAS = {
    "transformers": ("torch", "transformers", "tokenizers"),
    "analysis": ("matplotlib", "polars"),
    "http": ("httpx", "tenacity"),
    "cluster": ("joblib", "ray"),
    "fast": ("numba",),
    "convex": ("cvxpy", "clarabel"),
    "test": ("pytest", "hypothesis"),
}


def run_doctor(screen: Screen, seed: int) -> int:
    """Check this installation; status 0 if the core works, whatever extras are missing."""
    versions = installed_versions()
    extras = {extra: [m for m in modules if find_spec(m) is None] for extra, modules in _EXTRAS.items()}
    checks = {"learn and certify a small model": _core(seed), "bundled transformer": _bundled(extras)}
    screen.table("versions", ("package", "version"), [(k, v or "not installed") for k, v in versions.items()])
    screen.table(
        "extras",
        ("extra", "state"),
        [
            (e, "ready" if not gone else f"missing {', '.join(gone)}: pip install 'lrlm-sim[{e}]'")
            for e, gone in extras.items()
        ],
    )
    screen.table("checks", ("check", "result"), list(checks.items()))
    screen.say(f"accelerator: {_accelerator(extras)}")
    core_works = checks["learn and certify a small model"] == "works"
    screen.finish({"versions": versions, "missing": extras, "checks": checks, "ok": core_works})
    return 0 if core_works else 1


def _core(seed: int) -> str:
    try:
        teacher = open_oracle(f"parity:n=5,noise=0.1,seed={seed}")
        check_oracle(teacher, rng=seed)
        learned = ISANExtraction().fit(LogitAccess(teacher, seed=seed), seed)
        gap = total_variation(teacher, learned.model)
    except LrlmError as error:
        return f"failed: {error}"
    return "works" if gap < 1e-9 else f"failed: total variation {gap:.2g}"


def _bundled(extras: dict[str, list[str]]) -> str:
    if extras["transformers"]:
        return "needs the extra transformers"
    try:
        law = open_oracle(TRAINED).next_log_probs([[]])
    except LrlmError as error:
        return f"failed: {error}"
    return f"works ({law.shape[1]} tokens)"


def _accelerator(extras: dict[str, list[str]]) -> str:
    if extras["transformers"]:
        return "unknown without torch"
    import torch

    device: Any = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, CPU only"
    return str(device)
