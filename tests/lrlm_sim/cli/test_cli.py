"""The command line as a user meets it: exit status, one-line errors, manifests, JSON."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lrlm_sim.cli import main
from lrlm_sim.theorems import check_theorem
from oracles import HiddenMarkovModel
from oracles.storage import load, save


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_learn_then_certify(tmp_path, capsys):
    teacher = "parity:n=5,noise=0.1"
    status, out, _ = run(["learn", teacher, "--out", tmp_path / "run", "--samples", 500, "--json"], capsys)
    assert status == 0
    manifest = json.loads(out)
    assert manifest["verdict"] == "certified"
    assert manifest["certificate"]["interval"]["high"] <= 0.1
    assert manifest["ledger"]["calls"] > 0
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert stored["outcome"] == "certified"
    assert stored["certificate"] == manifest["certificate"]
    assert load(tmp_path / "run" / "model.safetensors").horizon == 6

    model = tmp_path / "run" / "model.safetensors"
    status, out, _ = run(["certify", teacher, model, "--out", tmp_path / "again", "--samples", 500], capsys)
    assert status == 0
    assert "certified at epsilon" in out
    assert "agrees with the certificate saved with the model" in out
    # Another teacher contradicts the saved certificate.
    status, out, _ = run(["certify", "parity:n=5,noise=0.4", model, "--out", tmp_path / "other"], capsys)
    assert status == 1
    assert "contradicts" in out


def test_a_wrong_model_is_not_certified(tmp_path, capsys):
    save(HiddenMarkovModel.random(2, 2, 6, rng=1), tmp_path / "wrong.safetensors")
    status, out, _ = run(
        ["certify", "parity:n=5,noise=0.01", tmp_path / "wrong.safetensors", "--out", tmp_path / "run"],
        capsys,
    )
    assert status == 1
    assert "not certified" in out


def test_spectrum_writes_plots_and_values(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    status, out, _ = run(
        [
            *("spectrum", "isan:width=3,vocab_size=8,horizon=20", "--n", 40, "--history-length", 8),
            *("--future-length", 8, "--first", 1, "--last", 3, "--out", tmp_path, "--json"),
        ],
        capsys,
    )
    assert status == 0
    sigma = np.load(tmp_path / "singular_values.npy", allow_pickle=False)
    assert sigma[3] < 1e-7 * sigma[0], "a width-3 teacher has three singular values"
    assert json.loads(out)["fitted_range"] == [1, 3]
    assert (tmp_path / "spectrum.png").stat().st_size > 0
    assert (tmp_path / "kl.png").stat().st_size > 0


def test_doctor_reports(capsys):
    status, out, _ = run(["doctor", "--json"], capsys)
    assert status == 0
    assert json.loads(out)["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["learn", "nonsense:n=3"], "unknown oracle"),
        (["learn", "hmm:n_states=two,vocab_size=2,horizon=3"], "n_states must be an integer"),
        (["learn", "hmm:n_states=2,vocab_size=2,horizon=3", "--learner", "magic"], "unknown learner"),
        (
            ["learn", "hmm:n_states=2,vocab_size=2,horizon=3", "--learner", "isan:speed=9"],
            "unknown parameter",
        ),
        (["certify", "parity:n=3", "missing.safetensors"], "no such file"),
        (["certify", "parity:n=3", "weights.pkl"], "pickle"),
        (["spectrum", "parity:n=3"], "past the horizon"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, words, tmp_path, capsys):
    status, out, err = run([*arguments, "--out", tmp_path], capsys)
    assert status == 2
    assert out == ""
    assert err.startswith("lrlm: ")
    assert err.count("\n") == 1
    assert words in err


def test_unknown_option_is_status_two(capsys):
    assert run(["learn", "parity:n=3", "--frobnicate"], capsys)[0] == 2


def test_a_spent_budget_is_status_one_and_kept(tmp_path, capsys):
    status, _, err = run(["learn", "parity:n=8", "--budget", 50, "--out", tmp_path], capsys)
    assert status == 1
    assert "budget" in err
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["outcome"] == "failed"
    assert manifest["ledger"]["calls"] <= 50


def test_importing_is_light():
    code = (
        "import oracles, lrlm_sim, sys; heavy = {'torch', 'transformers', 'matplotlib', 'scipy.stats',"
        " 'cvxpy', 'polars', 'httpx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interrupt_says_so_and_keeps_the_manifest(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lrlm_sim.cli.learn.certificate", stop)
    status, _, err = run(["learn", "parity:n=3", "--out", tmp_path], capsys)
    assert status == 130
    assert "interrupted" in err
    assert json.loads((tmp_path / "manifest.json").read_text())["outcome"] == "interrupted"


def test_verify_prints_the_table_and_writes_a_page(tmp_path, capsys):
    status, out, _ = run(["verify", "hmm-rank", "pinsker", "--out", tmp_path, "--json"], capsys)
    assert status == 0
    rows = json.loads(out)["theorems"]
    assert [(row["name"], row["verdict"]) for row in rows] == [("hmm-rank", "holds"), ("pinsker", "holds")]
    assert all(row["source"] and row["instances"] == 60 for row in rows)
    page = (tmp_path / "theorems.html").read_text()
    assert "Pinsker" in page
    assert (tmp_path / "pinsker.svg").exists()


def test_verify_repeats_an_instance_and_kills_mutants(tmp_path, capsys):
    status, out, _ = run(["verify", "hmm-rank", "--instance", "states=2,tokens=2,horizon=3,seed=1"], capsys)
    assert status == 0
    assert "measured 2" in out
    assert run(["verify", "hmm-rank", "--mutants", "--out", tmp_path], capsys)[0] == 0
    assert run(["verify", "nonsense"], capsys)[0] == 2
    assert run(["verify", "hmm-rank", "--instance", "states=2"], capsys)[0] == 2


def test_an_interrupted_verify_keeps_the_theorems_tried_so_far(tmp_path, capsys, monkeypatch):
    def stopped(chosen, budget, seed, jobs):
        yield check_theorem(chosen[1], budget, seed)  # they come in the order in which they end
        raise KeyboardInterrupt

    monkeypatch.setattr("lrlm_sim.cli.verify.findings", stopped)
    status, _, err = run(["verify", "hmm-rank", "pinsker", "--out", tmp_path], capsys)
    assert status == 130
    assert "interrupted" in err
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["outcome"] == "interrupted"
    assert [row["name"] for row in manifest["theorems"]] == ["pinsker"]
    assert "1 of 2 theorems tried so far" in (tmp_path / "theorems.html").read_text()


def test_theorems_whose_package_is_missing_are_not_tried(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    name = "single-token-rank-transformer"
    status, out, _ = run(["verify", "pinsker", name, "--out", tmp_path, "--jobs", 1], capsys)
    assert status == 0
    assert "not tried" in out
    assert "lrlm-sim[transformers]" in out
    status, _, err = run(["verify", name, "--instance", "quarters=1,seed=0"], capsys)
    assert status == 2
    assert "torch" in err
    status, out, _ = run(["verify", name, "--mutants", "--out", tmp_path], capsys)
    assert status == 0
    assert "torch is not installed" in out


def test_linear_programs_leave_standard_output_to_the_result(tmp_path):
    """HiGHS greets from C, past Python's sys.stdout; a fresh process, as it greets once."""
    code = "from lrlm_sim.cli import main; main()"
    arguments = ["verify", "l1-projection-tight", "--json", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    assert json.loads(done.stdout)["theorems"][0]["verdict"] == "holds"


def test_studies_are_listed_and_unknown_ones_refused(capsys):
    status, out, _ = run(["study", "list", "--json"], capsys)
    assert status == 0
    names = {row["name"]: row["summary"] for row in json.loads(out)["studies"]}
    assert "train_stdlib" in names
    assert all(names.values())
    status, _, err = run(["study", "run", "nonsense"], capsys)
    assert status == 2
    assert "unknown study" in err


def test_the_transformer_half_of_the_demo(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    from lrlm_sim.cli import demo
    from lrlm_sim.cli.console import Screen
    from lrlm_sim.cli.runs import open_run

    for name, value in {"_N": 24, "_HISTORY": 6, "_FUTURE": 6, "_FIRST": 2}.items():
        monkeypatch.setattr(demo, name, value)
    with open_run("demo", 0, tmp_path, {}) as opened:
        demo._measure_transformer(Screen(as_json=True), opened, 0)
    measured = json.loads((tmp_path / "manifest.json").read_text())["transformer"]
    assert set(measured) == {"trained", "step 0"}
    assert 0.2 < measured["trained"]["alpha"] < 2
    assert all(
        kl <= bound for kl, bound in zip(measured["trained"]["kl"], measured["trained"]["bound"], strict=True)
    )
    assert (tmp_path / "spectra.png").stat().st_size > 0


def test_lingen_on_a_low_rank_teacher(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    status, out, _ = run(
        [
            *(
                "lingen",
                "isan:width=3,vocab_size=4,horizon=24",
                "--helpers",
                20,
                "--futures",
                20,
                "--targets",
                2,
            ),
            *("--history-length", 5, "--future-length", 6, "--steps", 6, "--out", tmp_path, "--json"),
        ],
        capsys,
    )
    assert status == 0
    assert json.loads(out)["seed"] == 0
    assert list(tmp_path.glob("*.png"))
