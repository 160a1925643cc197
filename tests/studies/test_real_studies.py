"""Studies of the bundled model: each runs in its small version, and what they compute fast is right."""

import importlib
import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # extra "analysis"
pytest.importorskip("torch")  # extra "hf"
pytest.importorskip("transformers")

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.lingen import Options, run_lingen
from lrlm_sim.cli.sources import Source
from lrlm_sim.lingen import LinGen
from oracles.errors import HorizonError, ParameterError
from studies.models import FINAL_STEP, centred_unembedding, checkpoint, checkpoint_folders, permuted

RESULTS = {
    "emergence": (["along_training"], ["along_training"]),
    "spectrum_robustness": (["cases", "history_spaces"], ["cases"]),
    "lingen_study": (["variants", "helpers"], ["variants"]),
    "hidden_width": (["width"], ["width"]),
}


@pytest.fixture(name="model", scope="module")
def _model():
    return checkpoint(FINAL_STEP)


@pytest.mark.parametrize("name", RESULTS)
def test_study_runs(name, tmp_path, capsys):
    importlib.import_module(f"studies.{name}").main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    tables, figures = RESULTS[name]
    for table in tables:
        assert len((tmp_path / f"{table}.csv").read_text(encoding="utf-8").splitlines()) >= 3
        assert (tmp_path / f"{table}.md").read_text(encoding="utf-8") in printed
    for figure in figures:
        assert (tmp_path / f"{figure}.png").stat().st_size > 5000
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quick"] is True
    if name == "hidden_width":
        rows = (tmp_path / "width.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert [row.split(",")[2:4] for row in rows] == [["160", "160"]] * 2


def test_checkpoints_are_those_of_the_training_script():
    assert list(checkpoint_folders()) == [0, 27, 81, 243, 729, 2187, 6561]


def test_all_token_spectrum_by_hidden_states_is_the_direct_one(model):
    study = importlib.import_module("studies.spectrum_robustness")
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=(50, 6))
    assert study.check_hidden_states(model, tokens[:30], tokens[30:]) < 1e-5
    rows = permuted(tokens, 1)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(tokens, axis=1))
    assert (rows != tokens).any()


def test_laws_from_the_grid_are_those_of_the_lingen_oracle(model):
    study = importlib.import_module("studies.lingen_study")
    rng = np.random.default_rng(0)
    helpers, targets = (
        rng.integers(model.vocab_size, size=(5, 4)),
        rng.integers(model.vocab_size, size=(2, 4)),
    )
    bench = study.Bench.draw(model, targets, repeats=2, steps=3)
    weights = rng.standard_normal((2, 5)) / 5
    losses = bench.losses(bench.helper_states(helpers), weights)
    for i, target in enumerate(targets):
        generator = LinGen(helpers, [[]]).model(model, weights[i])
        truth = model.condition(target)
        for t in range(3):
            asked = [s[:t].tolist() for s in bench.strings[i]]
            p, q = truth.next_log_probs(asked), generator.next_log_probs(asked)
            np.testing.assert_allclose(losses[i, t], (np.exp(p) * (p - q)).sum(axis=1).mean(), rtol=1e-4)
    assert bench.centred.shape == centred_unembedding(model).shape
    assert np.abs(bench.compare(bench.truth)).max() < 1e-12


def test_lingen_command_reports_every_variant(tmp_path, capsys):
    """A teacher of logit rank ≤ 4: weights fitted on mixed futures continue it, uniform weights do not."""
    spec = "isan:width=4,vocab_size=5,horizon=12,seed=1"
    assert (
        run_lingen(Screen(True), spec, Options(Source(), Source(), 30, 40, 3, (4, 4), 5, 2, 4), 0, tmp_path)
        == 0
    )
    manifest = json.loads(capsys.readouterr().out)
    kl = {name: values[0] for name, values in manifest["cumulative_kl"].items()}
    assert kl["mixed futures"] < 1e-6 < kl["uniform weights"]
    assert np.load(tmp_path / "weights.npy").shape == (3, 30)
    assert (tmp_path / "lingen.png").stat().st_size > 5000


def test_lingen_command_refuses_what_does_not_fit(tmp_path):
    spec = "isan:width=2,vocab_size=3,horizon=6,seed=1"
    with pytest.raises(HorizonError, match="shorter lengths"):
        run_lingen(Screen(True), spec, Options(Source(), Source(), 4, 4, 1, (4, 4), 2, 1, 4), 0, tmp_path)
    with pytest.raises(ParameterError, match="the text has"):
        run_lingen(Screen(True), spec, Options(Source(), Source(), 90, 4, 1, (2, 2), 2, 1, 2), 0, tmp_path)
