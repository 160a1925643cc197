"""Streamed logit matrices: equal to those held in memory, within a memory limit, resumed, never mixed."""

import tracemalloc

import numpy as np
import pytest

from lrlm_sim import spectra
from lrlm_sim.block_store import BlockStore
from lrlm_sim.logit_stream import KeptTokens, LogitStream
from lrlm_sim.matrices import extended_logits
from lrlm_sim.noise_floor import noise_floor
from lrlm_sim.stream_spectrum import fit_range, halvings, measure_stream, space_angles
from oracles import ISAN, HiddenMarkovModel
from oracles.errors import FormatError, ParameterError, TooLargeError

RANKS = [1, 2, 4, 8]
RULES = [KeptTokens("all"), KeptTokens("likely", 3), KeptTokens("random", 2, seed=5)]


def strings(count, length, vocab, seed):
    return np.random.default_rng(seed).integers(0, vocab, (count, length))


def hmm():
    return HiddenMarkovModel.random(3, 6, 14, 0)


def stream(folder, oracle=None, rule=RULES[1], n=64, marks=(32, 16), memory=1 << 28, **options):
    oracle = oracle or hmm()
    parts = strings(n, 5, oracle.vocab_size, 1), strings(n, 4, oracle.vocab_size, 2)
    return LogitStream(
        oracle, *parts, rule, folder, **{"identity": "x"} | options, memory=memory, marks=marks
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_one_pass_gives_what_the_whole_matrix_gives(tmp_path, rule):
    found = stream(tmp_path, rule=rule)
    streamed = measure_stream(found, RANKS, [32, 16])
    logits = extended_logits(found.oracle, found.histories, found.futures, found.tokens)
    for n, sigma in streamed.sigmas.items():
        np.testing.assert_allclose(sigma, spectra.singular_values(logits[:n, :n]), atol=1e-12 * sigma[0])
    kl, l1 = spectra.low_rank_kl(logits, RANKS), spectra.misspecification(logits, RANKS)
    np.testing.assert_allclose(streamed.losses.kl, kl.kl, rtol=1e-7)
    np.testing.assert_allclose(streamed.losses.mean_l1, l1.mean_l1, rtol=1e-9)
    np.testing.assert_allclose(streamed.losses.max, l1.max, rtol=1e-9)
    assert streamed.columns == logits[0].size
    assert list(streamed.sigmas) == [64, 32, 16]
    other = extended_logits(found.oracle, found.histories, strings(40, 3, 6, 9))
    second = np.linalg.svd(other.reshape(64, -1))[0]
    angles = space_angles(streamed.basis, second, [2, 5])
    expected = spectra.principal_angles(logits, other, 5)
    assert angles[1].overlap == pytest.approx(np.square(np.cos(expected)).mean(), rel=1e-8)
    assert angles[1].random == 5 / 64


@pytest.mark.parametrize(
    ("family", "forms"), [("llama", ("states", "kept states")), ("gemma2", ("logits",) * 2)]
)
def test_hidden_states_give_the_logits_of_networks(tmp_path, family, forms):
    pytest.importorskip("torch")
    from oracles.transformer import TransformerOracle
    from tests.oracles.tiny_transformers import tiny_model

    model = TransformerOracle(tiny_model(family), identity="t")
    for rule, form in zip(RULES, forms, strict=False):
        found = stream(tmp_path / rule.rule, model, rule, n=24, marks=(), identity=None)
        streamed = measure_stream(found, [2, 4])
        logits = extended_logits(model, found.histories, found.futures, found.tokens)
        assert found.form == form
        sigma = spectra.singular_values(logits)
        np.testing.assert_allclose(streamed.sigma, sigma[: len(streamed.sigma)], atol=3e-6 * sigma[0])
        np.testing.assert_allclose(streamed.losses.kl, spectra.low_rank_kl(logits, [2, 4]).kl, rtol=2e-3)
        l1 = spectra.misspecification(logits, [2, 4]).mean_l1
        np.testing.assert_allclose(streamed.losses.mean_l1, l1, rtol=1e-3)


def test_memory_stays_below_the_limit(tmp_path):
    limit, n = 10_000_000, 260
    oracle = HiddenMarkovModel.random(3, 64, 12, 0)
    logits = n * n * oracle.vocab_size * 8
    assert logits > 3 * limit
    tracemalloc.start()
    try:
        found = stream(tmp_path, oracle, RULES[0], n, (n // 2,), limit)
        measure_stream(found, RANKS, [n // 2])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.plan.edges) > 4
    assert peak <= limit


def test_a_limit_that_cannot_be_kept_names_what_is_needed(tmp_path):
    with pytest.raises(TooLargeError, match=r"at least .* MB, got 2\.097 MB"):
        stream(tmp_path, memory=1 << 21, n=600)
    assert not (tmp_path / "edges.npy").exists()


def test_a_stopped_stream_goes_on_where_it_stopped(tmp_path):
    whole = measure_stream(stream(tmp_path / "whole"), RANKS, [32, 16])
    first = stream(tmp_path / "part")
    next(first.blocks())
    assert first.computed == 1
    (tmp_path / "part" / "block-9.1.partial").write_bytes(b"half a block")
    second = stream(tmp_path / "part")
    again = measure_stream(second, RANKS, [32, 16])
    assert (second.reused, second.computed) == (1, len(second.plan.edges) - 2)
    np.testing.assert_array_equal(again.sigma, whole.sigma)
    third = stream(tmp_path / "part")
    measure_stream(third, RANKS)
    assert third.computed == 0
    damaged = next((tmp_path / "part").glob("block-*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    fourth = stream(tmp_path / "part")
    np.testing.assert_array_equal(measure_stream(fourth, RANKS).sigma, whole.sigma)
    assert fourth.computed == 1


def test_blocks_of_other_settings_are_never_taken(tmp_path):
    stream(tmp_path)
    for change, name in (
        ({"identity": "y"}, "model"),
        ({"rule": RULES[2]}, "tokens"),
        ({"n": 63}, "futures"),
    ):
        with pytest.raises(FormatError, match=f"{name}.*repeat its settings"):
            stream(tmp_path, **change)
    with pytest.raises(ParameterError, match="no identity"):
        stream(tmp_path / "other", identity=None)


def test_a_full_disk_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lrlm_sim.block_store.shutil.disk_usage", lambda _: type("U", (), {"free": 10}))
    with pytest.raises(FormatError, match=r"free: make room"):
        stream(tmp_path)


def test_a_store_keeps_only_whole_arrays(tmp_path):
    store = BlockStore(tmp_path, {"a": 1})
    store.put("x", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(store.get("x", (2, 3)), [[0, 1, 2], [3, 4, 5]])
    assert store.get("x", (3, 2)) is None
    assert store.get("y") is None
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(FormatError, match="not readable"):
        BlockStore(tmp_path, {"a": 1})


def test_fits_with_and_without_the_first_direction():
    sigma = 3.0 * np.arange(1, 101) ** -0.7
    sigma[0] = 1000.0
    fit = fit_range(100, sigma, 5, 50)
    assert fit.alpha == pytest.approx(0.7)
    rest = np.arange(6, 51)
    slope = -np.polyfit(np.log(rest - 1), np.log(3.0 * rest**-0.7), 1)[0]
    assert fit.alpha_rest == pytest.approx(slope)
    assert fit_range(3, np.array([1.0, 0.5, 0.0]), 2, 3) is None
    assert halvings(100, 100) == [50, 25]
    assert halvings(100, 80) == [80, 40, 20]


# Noise


def test_exact_models_have_the_floor_of_arithmetic_only(tmp_path):
    found = stream(tmp_path, ISAN.random(3, 6, 14, rng=0), RULES[0])
    streamed = measure_stream(found, RANKS)
    noise = noise_floor(found, streamed.columns, streamed.arithmetic)
    assert (noise.method, noise.entry, noise.storage) == ("exact", 0.0, 0.0)
    assert noise.sinks(streamed.sigma) == 4
    assert noise.certain(streamed.sigma) == 3


@pytest.mark.parametrize("method", ["reference", "batches"])
def test_half_precision_sinks_where_its_spectrum_leaves_that_of_the_reference(tmp_path, method):
    torch = pytest.importorskip("torch")
    from oracles.transformer import TransformerOracle
    from tests.oracles.tiny_transformers import tiny_model

    half = tiny_model("llama").to(torch.bfloat16)
    model = TransformerOracle(half, identity="half")
    exact = TransformerOracle(
        tiny_model("llama").to(torch.bfloat16).to(torch.float64), identity="same weights"
    )
    n = 60
    noisy = stream(tmp_path / "half", model, RULES[0], n, ())
    spectrum, truth = (
        measure_stream(s, [1]) for s in (noisy, stream(tmp_path / "e", exact, RULES[0], n, ()))
    )
    noise = noise_floor(noisy, spectrum.columns, spectrum.arithmetic, method=method, sample=12)
    error = (noisy.cells(model, slice(n), slice(n)) - noisy.cells(exact, slice(n), slice(n))) @ noisy.expand.T
    actual = np.linalg.norm(error.reshape(n, -1), 2)
    if method == "reference":
        assert noise.entry == pytest.approx(np.sqrt(np.square(error).mean()), rel=0.3)
        assert noise.floor < 1.5 * actual
        assert noise.worst > actual / 1.5
    else:  # errors that both batches share are not seen
        assert 0 <= noise.entry < 1.5 * np.sqrt(np.square(error).mean())
    gaps = np.abs(spectrum.sigma - truth.sigma)
    assert gaps.max() <= actual * (1 + 1e-9)  # Weyl
