"""Every study runs in its small version and writes its table, figure and manifest."""

import importlib
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # extra "analysis"

from lrlm_sim.distances import estimate_total_variation
from oracles import ConditionalSampleAccess, HiddenMarkovModel, NoisyParity

STUDIES = {
    "conditional_exact": ["largest_tv"],
    "conditional_samples": ["tv_against_tokens"],
    "long_horizons": ["sticky", "compounding"],
    "fidelity": ["fidelity"],
    "parity_queries": ["parity"],
    "hmm_compression": ["compression"],
    "certificate_coverage": ["coverage", "widths"],
}


@pytest.mark.parametrize("name", STUDIES)
def test_study_runs(name, tmp_path, capsys):
    importlib.import_module(f"studies.{name}").main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for result in STUDIES[name]:
        assert (tmp_path / f"{result}.png").stat().st_size > 5000
        lines = (tmp_path / f"{result}.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) >= 3
        assert (tmp_path / f"{result}.md").read_text(encoding="utf-8") in printed
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quick"] is True
    assert manifest["versions"]["numpy"] == np.__version__


def test_the_basis_query_attack_recovers_the_secret_and_pays_n_r_labels():
    """All majorities right with probability ≥ 1 − 1e-9 (δ of the attack), n·r calls of one token each."""
    attack = importlib.import_module("studies.parity_queries").basis_query_attack
    teacher = NoisyParity.random(16, 0.1, 5)
    access = ConditionalSampleAccess(teacher, seed=0)
    secret, margins, ledger = attack(access, 0.1, 1e-9)
    repeats = int(np.ceil(2 / 0.8**2 * np.ceil(np.log2(16 / 1e-9))))
    np.testing.assert_array_equal(secret, teacher.secret)
    assert margins.min() > 0
    assert ledger.calls == ledger.generated_tokens == 16 * repeats
    assert ledger.submitted_tokens == 16 * 16 * repeats
    assert ledger.distinct_prefixes == 16


def test_errors_compound_without_projection_and_not_with_it():
    study = importlib.import_module("studies.long_horizons")
    fair = HiddenMarkovModel(np.ones(1), np.ones((1, 1)), np.full((1, 2), 0.5), 30)
    tv = {
        post: estimate_total_variation(fair, study.expanding_model(30, 1e-4, 1.5, post), 200, rng=0).estimate
        for post in ("none", "kl")
    }
    assert tv["none"] > 0.5
    assert tv["kl"] < 0.02
