"""`lrlm spectrum` and `lrlm lingen` as users meet them: stopped and resumed, and given what does not fit."""

import json
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lrlm_sim.cli import main
from lrlm_sim.cli.sources import memory_bytes
from oracles.errors import ParameterError

TEACHER = "isan:width=3,vocab_size=8,horizon=20"
SMALL = ["--n", 40, "--history-length", 8, "--future-length", 8, "--first", 1, "--last", 3]


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def refused(arguments, capsys, words):
    status, out, err = run(arguments, capsys)
    assert (status, out) == (2, "")
    message = err.strip().splitlines()[-1]  # before it may stand the bars of what was loaded in this process
    assert message.startswith("lrlm: ")
    assert words in message
    assert "Traceback" not in err


def test_everything_at_once(tmp_path, capsys):
    arguments = ["spectrum", TEACHER, *SMALL, "--nonsense", "--mixed", "--tokens", "all", "--single-token"]
    status, out, _ = run([*arguments, "--compare", TEACHER + ",seed=1", "--out", tmp_path, "--json"], capsys)
    assert status == 0
    found = json.loads(out)
    for name in ("sensible", "nonsense", "compared"):
        assert found[name]["noise"]["sinks_at"] == 4
        assert found[name]["losses"]["kl"][2] < 1e-12 < found[name]["losses"]["kl"][0]  # rank 4 and rank 1
        assert found[name]["fits"][0]["n"] == 40
    same, other = (found["principal_angles"][name][0] for name in ("nonsense", "compared"))
    assert same["rank"] == 1
    assert found["principal_angles"]["nonsense"][1]["overlap"] > other["random"]
    assert found["single_token_rank"] == 3
    for name in ("spectrum", "kl", "angles"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    for size in ("", "_20"):
        sigma = np.load(tmp_path / f"singular_values{size}.npy", allow_pickle=False)
        assert sigma[2] > 1e-3 * sigma[0] > 1e6 * sigma[3]
    status, out, _ = run([*arguments, "--out", tmp_path / "table"], capsys)
    assert status == 0
    assert "noise" in out
    assert "mean ℓ1" in out


def test_a_killed_run_is_resumed_and_gives_the_same(tmp_path, capsys):
    """SIGKILL after the first blocks; the same command goes on with them, other settings do not."""
    arguments = ["spectrum", "isan:width=24,vocab_size=150,horizon=90", "--n", 220, "--history-length", 30]
    arguments += ["--future-length", 30, "--tokens", "all", "--memory", "400MB"]
    texts = [str(a) for a in [*arguments, "--out", tmp_path / "part"]]
    code = f"from lrlm_sim.cli import main; main({texts!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    while not list(tmp_path.rglob("block-*.npy")) and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(list(tmp_path.rglob("block-*.npy")))
    assert kept >= 1
    refused([*arguments, "--seed", 1, "--resume", tmp_path / "part"], capsys, "seed: 0 there, 1 now")
    refused([*arguments[:-4], "--k", 20, "--resume", tmp_path / "part"], capsys, "another computation")
    status, out, _ = run([*arguments, "--resume", tmp_path / "part", "--json"], capsys)
    assert status == 0
    blocks = json.loads(out)["sensible"]["blocks"]
    assert blocks["reused"] == kept
    assert blocks["computed"] >= 1
    assert run([*arguments, "--out", tmp_path / "whole"], capsys)[0] == 0
    parts = [
        np.load(tmp_path / name / "singular_values.npy", allow_pickle=False) for name in ("part", "whole")
    ]
    np.testing.assert_array_equal(*parts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "much"], "such as 2GB"),
        (["--memory", "1.1MB", "--n", 400], "at least"),
        (["--tokens", "some"], '"likely", "random" or "all"'),
        (["--samples", "--text", "."], "leave --text and --dataset out"),
        (["--text", "no/such/folder"], "no such file or folder"),
        (["--text", "docs", "--dataset", "owner/name"], "not both"),
        (["--dtype", "float16"], "hf:NAME"),
        (["--resume", "no/such/run"], "no blocks to go on with"),
        (["--compare", "isan:width=3,vocab_size=9,horizon=20"], "one tokenizer"),
        (["--n", 4000], "4000 distinct histories asked for, the text has"),
        (["--last", 1], "last"),
    ],
)
def test_bad_options(options, words, tmp_path, capsys):
    base = ["spectrum", "isan:width=3,vocab_size=2,horizon=20", "--history-length", 4, "--future-length", 4]
    if {"--compare", "--memory"} & set(options):
        base = ["spectrum", TEACHER, *SMALL]
    out = [] if "--resume" in options else ["--out", tmp_path / "run"]
    status, _, err = run([*base, *options, *out], capsys)
    assert status == 2
    assert words in err


@pytest.mark.parametrize(("text", "size"), [("2GB", 2e9), ("512 mb", 512e6), ("3e8", 3e8), ("1.5G", 1.5e9)])
def test_sizes(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-2GB", "2 GiB", "0.5MB", "1.2.3MB"])
def test_bad_sizes(text):
    with pytest.raises(ParameterError, match="2GB"):
        memory_bytes(text)


def test_datasets_by_name(tmp_path, capsys, monkeypatch):
    arguments = ["spectrum", TEACHER, *SMALL, "--out", tmp_path, "--dataset", "owner/name:part"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(arguments, capsys, "lrlm-sim[hub]")
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        raise ConnectionError("no route to host")

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    refused(arguments, capsys, "no route to host")
    assert asked == [(("owner/name", "part"), {"split": "train", "streaming": True})]
    module.load_dataset = lambda *_, **__: iter([{"content": "x"}])
    refused(arguments, capsys, "only content")
    module.load_dataset = lambda *_, **__: iter([{"text": "some words"}] * 20)
    refused(arguments, capsys, "this model has no tokenizer")


# Models that do not fit


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """A tiny model of 50 tokens, 64 positions, with a tokenizer of 40 characters: a padded vocabulary."""
    pytest.importorskip("torch")
    from tests.oracles.tiny_transformers import tiny_model

    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer(40).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokenizer(size):
    """One token for each of the first characters from the blank on."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({chr(32 + i): i for i in range(size)}, unk_token=" "))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words)


def text_file(tmp_path, characters=4000, highest=39):
    path = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    path.write_text("".join(chr(32 + i) for i in rng.integers(1, highest + 1, characters)))
    return path


LENGTHS = ["--n", 20, "--history-length", 6, "--future-length", 5]


def test_a_padded_vocabulary_works(folder, tmp_path, capsys):
    arguments = ["spectrum", f"hf:{folder}", *LENGTHS, "--text", text_file(tmp_path), "--tokens", "all"]
    status, out, _ = run([*arguments, "--single-token", "--out", tmp_path / "run", "--json"], capsys)
    assert status == 0
    found = json.loads(out)
    assert found["sensible"]["kept"] == "states"
    assert found["sensible"]["noise"]["method"] == "reference"
    assert found["sensible"]["noise"]["entry"] > 0
    assert found["single_token_rank"] == 16


def test_a_tokenizer_of_another_model(folder, tmp_path, capsys):
    tokenizer(80).save_pretrained(folder)
    text = text_file(tmp_path, highest=79)
    words = "do tokenizer and model match"
    refused(["spectrum", f"hf:{folder}", *LENGTHS, "--text", text, "--out", tmp_path / "r"], capsys, words)
    refused(["lingen", f"hf:{folder}", "--text", text, "--out", tmp_path / "r"], capsys, words)


def test_a_short_text(folder, tmp_path, capsys):
    text = text_file(tmp_path, characters=200)
    arguments = [f"hf:{folder}", "--text", text, "--out", tmp_path / "r"]
    refused(["spectrum", *arguments, *LENGTHS], capsys, "20 distinct histories asked for, the text has 9")
    refused(["lingen", *arguments], capsys, "windows with distinct prompts are needed, the text has 6")


def test_a_context_that_is_too_long(folder, tmp_path, capsys):
    arguments = [f"hf:{folder}", "--history-length", 50, "--future-length", 20, "--out", tmp_path / "r"]
    refused(["spectrum", *arguments], capsys, "reads at most 64")
    refused(["lingen", *arguments], capsys, "reads at most 64")
    assert not (tmp_path / "r").exists()


def test_logits_that_are_nan_in_half_precision(folder, tmp_path, capsys):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    scaled = {name: 1e4 * w if "down_proj" in name or "up_proj" in name else w for name, w in weights.items()}
    save_file(
        {name: w.contiguous() for name, w in scaled.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    assert all(torch.isfinite(w.half()).all() for w in scaled.values())
    arguments = ["spectrum", f"hf:{folder}", *LENGTHS, "--text", text_file(tmp_path)]
    status, _, err = run([*arguments, "--dtype", "float16", "--out", tmp_path / "half"], capsys)
    assert status == 1
    assert "NaN in torch.float16" in err
    assert "dtype='float32'" in err
    assert run([*arguments, "--dtype", "float32", "--out", tmp_path / "single"], capsys)[0] == 0


def test_a_model_without_bos(tmp_path, capsys):
    pytest.importorskip("torch")
    from tests.oracles.tiny_transformers import tiny_model

    tiny_model("llama-without-bos").save_pretrained(tmp_path / "model")
    tokenizer(40).save_pretrained(tmp_path / "model")
    spec, text = f"hf:{tmp_path / 'model'}", text_file(tmp_path)
    refused(
        ["spectrum", spec, *LENGTHS, "--out", tmp_path / "r"], capsys, "no BOS token"
    )  # samples start there
    status, _, _ = run(["spectrum", spec, *LENGTHS, "--text", text, "--out", tmp_path / "s"], capsys)
    assert status == 0
    small = ["--helpers", 20, "--futures", 12, "--targets", 2, "--history-length", 6, "--future-length", 4]
    arguments = ["lingen", spec, *small, "--steps", 3, "--repeats", 1, "--text", text, "--json"]
    status, out, _ = run([*arguments, "--out", tmp_path / "l"], capsys)
    assert status == 0
    assert "last 5 tokens" in json.loads(out)["cumulative_kl"]
    assert "last 5 tokens, no BOS" not in json.loads(out)["cumulative_kl"]


def test_a_folder_without_safetensors(folder, tmp_path, capsys):
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    refused(["spectrum", f"hf:{folder}", "--out", tmp_path / "r"], capsys, "model.save_pretrained(folder)")
    assert not (tmp_path / "r").exists()


def test_lingen_baselines_and_transfer(folder, tmp_path, capsys):
    from tests.oracles.tiny_transformers import tiny_model

    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    tokenizer(40).save_pretrained(other)
    small = ["--helpers", 24, "--futures", 16, "--targets", 3, "--history-length", 6, "--future-length", 4]
    arguments = [
        "lingen",
        f"hf:{folder}",
        *small,
        "--steps",
        3,
        "--repeats",
        2,
        "--text",
        text_file(tmp_path),
    ]
    arguments += ["--transfer-from", f"hf:{other}", "--earlier", f"hf:{other}", "--spanner", 8, "--nonsense"]
    status, out, _ = run([*arguments, "--out", tmp_path / "run", "--json"], capsys)
    assert status == 0
    found = json.loads(out)
    kl = {name: values[0] for name, values in found["cumulative_kl"].items()}
    expected = {
        *("mixed futures", "fixed-length futures", "single token", "uniform weights", "last 5 tokens"),
        *("last 5 tokens, no BOS", "nonsense helpers", "nonsense helpers and futures"),
        *("8 helpers by a spanner", "8 helpers at random", "weights of another model"),
        *("the other model itself", "earlier checkpoint"),
    }
    assert set(kl) == expected
    assert kl["mixed futures"] < kl["uniform weights"]
    assert kl["mixed futures"] < kl["earlier checkpoint"] == kl["the other model itself"]
    assert kl["last 5 tokens"] != kl["last 5 tokens, no BOS"]
    assert found["difference"]["mixed futures"] == [0.0, 0.0]
    assert len(found["per_step_error"]["single token"]) == 3
    tokenizer(41).save_pretrained(other)
    refused([*arguments, "--out", tmp_path / "r"], capsys, "different tokenizers")


def test_lingen_out_of_distribution(folder, tmp_path, capsys):
    text, other = text_file(tmp_path), tmp_path / "other.md"
    other.write_text("!\"#$%&'()*+" * 40)
    small = ["--helpers", 24, "--futures", 16, "--targets", 3, "--history-length", 6, "--future-length", 4]
    arguments = ["lingen", f"hf:{folder}", *small, "--steps", 2, "--repeats", 1, "--text", text]
    status, out, _ = run([*arguments, "--target-text", other, "--out", tmp_path / "run"], capsys)
    assert status == 0
    assert "3 targets out of distribution" in out
