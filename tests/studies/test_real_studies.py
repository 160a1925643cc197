"""Studies of the bundled model: each runs in its small version, and what they compute fast is right."""

import importlib
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # extra "analysis"
pytest.importorskip("torch")  # extra "hf"
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.lingen import Options, run_lingen
from lrlm_sim.cli.sources import Source
from lrlm_sim.lingen import LinGen, mixed_futures
from oracles.errors import FormatError, HorizonError, ParameterError
from studies.common import Study
from studies.models import CHECKPOINTS, centred_unembedding, names, permuted, subject, text_windows

SMALL = [word for name in names()[-2:] for word in ("--model", name)]
RESULTS = {
    "emergence": (SMALL, ["along_training", "against_rank"], ["along_training", "against_rank"]),
    "spectrum_robustness": (SMALL, ["cases", "history_spaces"], ["cases"]),
    "lingen_study": (SMALL, ["variants", "helpers"], ["variants"]),
    "hidden_width": (["--model", "bundled"], ["width"], ["width"]),
}


@pytest.fixture(name="bundled", scope="module")
def _bundled():
    return subject("bundled")


@pytest.fixture(name="model", scope="module")
def _model(bundled):
    return bundled.model


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """A tiny model with a tokenizer of its own, and a text, as anyone may have them."""
    folder = tmp_path_factory.mktemp("tiny")
    text = "\n".join(
        f"line {i}: the {i * i} of {i % 7} is not {i % 11}, says {i * 31 % 97}" for i in range(400)
    )
    (folder / "text.txt").write_text(text, encoding="utf-8")
    train = importlib.import_module("studies.train_stdlib")
    tokenizer = train.train_tokenizer([text], train.Config(vocab_size=300, context=64))
    set_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_study(name, options, tables, figures, out, capsys):
    importlib.import_module(f"studies.{name}").main(["--quick", "--out", str(out), *options])
    printed = capsys.readouterr().out
    for table in tables:
        assert len((out / f"{table}.csv").read_text(encoding="utf-8").splitlines()) >= 2
        assert (out / f"{table}.md").read_text(encoding="utf-8") in printed
    for figure in figures:
        assert (out / f"{figure}.png").stat().st_size > 5000
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quick"] is True


@pytest.mark.parametrize("name", RESULTS)
def test_study_runs(name, tmp_path, capsys):
    run_study(name, *RESULTS[name], tmp_path, capsys)
    if name == "hidden_width":
        rows = (tmp_path / "width.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert [row.split(",")[3:5] for row in rows] == [["160", "160"]] * 2


@pytest.mark.parametrize("name", RESULTS)
def test_study_takes_any_folder_and_text(name, folder, tmp_path, capsys):
    options = ["--model", f"hf:{folder}", "--text", str(folder / "text.txt")]
    run_study(name, options, RESULTS[name][1], RESULTS[name][2], tmp_path, capsys)
    if name != "hidden_width":
        manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["text"] == "text.txt"


def test_a_model_without_a_tokenizer_is_refused(folder, tmp_path):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, tmp_path)
    with pytest.raises(FormatError, match="without a tokenizer"):
        _ = subject(f"hf:{tmp_path}").model


def test_checkpoints_are_those_of_the_training_script(bundled):
    train = importlib.import_module("studies.train_stdlib")
    assert list(bundled.sources) == [0, 27, 81, 243, 729, 2187, 6561]
    for name in names():
        assert train.checkpoint_steps(train.CONFIGS[name]) == list(subject(name).sources)
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*") if file.is_file()) < 20e6


@pytest.mark.parametrize("name", names())
def test_committed_models_predict_files_they_were_not_trained_on(name):
    """As well as the training reported, and better than the bigram model it was compared with."""
    models, found = importlib.import_module("studies.models"), subject(name)
    report = json.loads((CHECKPOINTS / name / "training.json").read_text(encoding="utf-8"))
    windows = text_windows(found.model, 256, models.heldout_text())[:48]  # as long as in training
    loss = -found.model.score(windows).mean() / 256
    reported = report["checkpoints"][-1]["heldout"]["nats_per_token"]
    assert abs(loss - reported) < 0.5
    assert reported < report.get("heldout_count_models", {}).get("bigram", np.log(found.model.vocab_size))


def test_losses_of_count_models():
    train, rng = importlib.import_module("studies.train_stdlib"), np.random.default_rng(0)
    stream = np.tile([0, 1, 2, 3], 500)  # the next token is certain, a token alone is one of four
    held = train.torch.from_numpy(np.concatenate([np.full((5, 1), 9), stream[:60].reshape(5, 12)], axis=1))
    found = train.count_losses(stream, held, 10)
    assert abs(found["unigram"] - np.log(4)) < 0.01
    assert abs(found["bigram"] - np.log(4) / 12) < 0.01
    random = rng.integers(10, size=20_000)
    held = train.torch.from_numpy(rng.integers(10, size=(40, 33)))
    found = train.count_losses(random, held, 10)
    assert found["bigram_mass"] == 300.0
    assert abs(found["bigram"] - found["unigram"]) < 0.02


def test_what_a_study_computed_is_kept(tmp_path):
    study, calls = Study("x", tmp_path, True), []
    for key in (1, 1, 2):
        found = study.once(lambda key=key: (calls.append(key), {"a/b": np.arange(3) * key})[1], "x", key)
        np.testing.assert_array_equal(found["a/b"], np.arange(3) * key)
    assert calls == [1, 2]


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


def test_fits_from_remembered_states_are_those_of_the_model(model):
    study = importlib.import_module("studies.lingen_study")
    tokens = np.random.default_rng(1).integers(model.vocab_size, size=(16, 4))
    helpers, targets, futures = tokens[:6], tokens[6:8], mixed_futures(tokens[8:], 0)
    answered = study.Answered(model)
    for few in (futures, futures[:3]):
        direct = LinGen(helpers, few, ridge=1e-3).weights(model, list(targets))
        found = LinGen(helpers, few, ridge=1e-3).weights(answered, list(targets))
        np.testing.assert_allclose(found.weights, direct.weights, rtol=1e-3, atol=1e-5)


def test_a_model_receives_its_own_weights_unchanged():
    study, models = (importlib.import_module(f"studies.{n}") for n in ("lingen_study", "models"))
    lab = study.Lab(subject(names()[-1]), models.heldout_text()[:40_000], study.QUICK)
    fits = lab.fits()
    key = f"{study.IN}/{study.MIXED}"
    found = lab.received(lab, fits[key])
    np.testing.assert_allclose(found["weights"], lab.losses(fits)[key], rtol=1e-6, atol=1e-9)
    assert np.abs(found["itself"]).max() < 1e-6
    few = fits["few/spanner 4"]
    assert [np.count_nonzero(row) for row in few] == [4] * len(few)


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
