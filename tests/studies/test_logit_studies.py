"""Studies of learning from logits: each runs in its small version, and what it shows holds there."""

import csv
import importlib
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # extra "analysis"

from oracles import ISAN, LogitAccess, TopLogitAccess
from studies.access_cost import FromTop
from studies.approximate_rank import frequent_tokens, verdict

STUDIES = {
    "logit_exact": (
        ["largest_tv", "growth", "witness_words"],
        ["largest_tv", "rare_strings", "calls", "two_ranks", "growth", "witness_words"],
    ),
    "logit_noise": (["samplers"], ["samplers"]),
    "boolean_fourier": (["terms"], ["equal_queries", "enough_queries"]),
    "approximate_rank": (["samplers"], ["samplers", "paired", "look_back"]),
    "access_cost": (["costs"], ["costs"]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs a study once, in its small version; gives its folder."""
    folders = {}

    def run(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            importlib.import_module(f"studies.{name}").main(["--quick", "--out", str(folders[name])])
        return folders[name]

    return run


def table(folder, name):
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", STUDIES)
def test_study_runs(name, results):
    figures, tables = STUDIES[name]
    folder = results(name)
    for figure in figures:
        assert (folder / f"{figure}.png").stat().st_size > 5000
    for each in tables:
        assert len(table(folder, each)) >= 2
        assert (folder / f"{each}.md").read_text(encoding="utf-8").startswith("| ")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quick"] is True
    assert manifest["versions"]["numpy"] == np.__version__


def test_exact_logits_give_exact_models_in_one_epoch(results):
    folder = results("logit_exact")
    for row in table(folder, "largest_tv"):
        assert float(row["largest TV"]) < 1e-9
        assert row["most epochs"] == "1"
        assert row["success"] == row["number"]
    for row in table(folder, "calls"):
        assert int(row["most calls"]) <= int(row["earlier implementation"])
    for row in table(folder, "two_ranks"):
        assert int(row["probability rank"]) == int(row["A"]) ** int(row["n"])
        assert int(row["rank learned"]) == int(row["logit rank"]) == int(row["n"]) * (int(row["A"]) - 1)
    for row in table(folder, "growth"):
        assert int(row["calls"]) < float(row["request bound"])
    for row in table(folder, "witness_words"):
        assert row["status"] == "success"
        assert 0 < int(row["most words at a cut"]) <= int(row["bound 64·d·J"])
        assert int(row["epochs"]) > 1


def test_an_under_estimated_rank_is_reported_and_the_others_hold(results):
    rows = table(results("logit_noise"), "samplers")
    assert [row["rank"] for row in rows] == ["−1", "exact", "+2"]
    assert rows[0]["status"] == "rank_too_small"
    for row in rows[1:]:
        assert row["status"] == "success"
        assert all(float(row[method]) < 0.03 for method in ("ridge", "box", "qr", "lp"))


def test_terms_are_read_off_the_learned_network(results):
    for row in table(results("boolean_fourier"), "equal_queries"):
        assert row["low rank: terms"] == row["k"]
        assert float(row["low rank: coefficient error"]) < 1e-9
        assert int(row["buckets: calls"]) >= int(row["low rank: calls"])
    for row in table(results("boolean_fourier"), "enough_queries"):
        assert row["buckets: terms"] == row["k"]
        assert float(row["calls / low rank"]) > 1


def test_only_joint_forms_revise_coefficients(results):
    errors = {row["method"]: row for row in table(results("approximate_rank"), "look_back")}
    assert errors["box"]["error when reached"] == errors["box"]["after the whole string"]
    assert errors["qr"]["error when reached"] != errors["qr"]["after the whole string"]


def test_logits_cost_less_than_samples_and_give_more(results):
    rows = table(results("access_cost"), "costs")
    for name in {row["teacher"] for row in rows}:
        mine = [row for row in rows if row["teacher"] == name]
        exact = [row for row in mine if "logits" in row["access"]]
        sampled = [row for row in mine if row["access"] == "conditional samples"]
        assert all(float(row["TV"]) < 1e-9 for row in exact)
        assert max(int(row["calls"]) for row in exact) < min(int(row["calls"]) for row in sampled)


def test_frequent_tokens_are_those_of_largest_mean_probability():
    readouts = np.array([[0.0], [3.0], [1.0], [2.0]])
    constant = ISAN(np.ones(1), np.ones((4, 1, 1)), readouts, 3)
    np.testing.assert_array_equal(frequent_tokens(constant, 2, 3), [1, 3])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_teacher_behind_top_logits_is_the_same_teacher(k):
    teacher = ISAN.random(2, 5, 4, 1)
    access = TopLogitAccess(teacher, k=k)
    seen = FromTop(access)
    histories = [[0, 1], [3, 2], [0, 1]]
    np.testing.assert_allclose(seen.next_log_probs(histories), teacher.next_log_probs(histories), atol=1e-11)
    assert access.ledger.calls == 2 * -(-4 // (k - 1))  # two distinct histories
    logits = LogitAccess(seen).logits(histories)
    np.testing.assert_allclose(logits, LogitAccess(teacher).logits(histories), atol=1e-11)
    assert access.ledger.calls == 2 * -(-4 // (k - 1))  # each asked once for all


def test_verdicts_compare_with_two_standard_errors():
    assert verdict(-0.1, 0.02).endswith("wins")
    assert verdict(0.1, 0.02).endswith("loses")
    assert verdict(0.03, 0.02).endswith("ties")
