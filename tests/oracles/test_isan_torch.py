"""Exported ISANs: the same law through torch, `generate`, folders, and `TransformerOracle`; fine-tuning."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from oracles import ISAN
from oracles.errors import HorizonError, ParameterError, TokenError
from oracles.isan_torch import IMPOSSIBLE, ISANConfig, ISANForCausalLM, from_torch
from oracles.transformer import TransformerOracle
from tests.oracles.enumeration import check_frequencies
from tests.registry import per_step_isan

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads of tiny matrix products only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def networks() -> list[ISAN]:
    mixed = per_step_isan(3, 3, 5, 2)
    return [
        ISAN.random(3, 4, 6, 0, scale=2.0),
        ISAN.random(4, 2, 9, 1, orthogonal=True),
        per_step_isan(2, 3, 4, 0),
        per_step_isan(2, 3, 1, 0),
        ISAN(mixed.initial, mixed.transitions[0], mixed.readouts, 5),
        ISAN(mixed.initial, mixed.transitions, mixed.readouts[0], 5),
    ]


def strings(network: ISAN, n: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, network.vocab_size, (n, network.horizon))


def laws(network: ISAN, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities before each token of each row, (n, T, A)."""
    return np.stack([network.next_log_probs(tokens[:, :t]) for t in range(network.horizon)], axis=1)


def with_boundary(network: ISAN, tokens: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.pad(tokens, ((0, 0), (1, 0)), constant_values=network.vocab_size))


# The law


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("network", networks(), ids=str)
def test_laws_are_those_of_the_network(network, dtype):
    tokens = strings(network)
    found = network.to_torch(dtype)(with_boundary(network, tokens)).logits.detach().log_softmax(-1)
    assert found.dtype == getattr(torch, dtype)
    assert np.abs(found[:, :-1, :-1].numpy() - laws(network, tokens)).max() <= TOLERANCES[dtype]
    assert (found[:, :-1, -1].exp() == 0).all()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99), st.integers(0, 5))
def test_a_boundary_anywhere_starts_a_string(width, vocab_size, horizon, seed, shift):
    """Packed strings, and strings without a boundary before them, read as the strings alone."""
    network = per_step_isan(width, vocab_size, horizon, seed)
    tokens, model = strings(network, 3, seed), network.to_torch("float64")
    cut = min(shift, horizon)
    packed = torch.cat([torch.tensor(tokens[:, :cut]), with_boundary(network, tokens)], dim=1)
    found = model(packed).logits.detach()
    expected = laws(network, tokens)
    assert np.abs(found[:, cut:-1, :-1].numpy() - expected).max() <= 1e-12
    assert np.abs(found[:, : max(cut - 1, 0), :-1].numpy() - expected[:, 1:cut]).max(initial=0) <= 1e-12


def test_left_padding_with_boundaries_or_under_a_mask():
    network = ISAN.random(3, 4, 6, 0)
    tokens, model = strings(network, 4), network.to_torch("float64")
    ids = with_boundary(network, tokens)
    padded = torch.cat([torch.full((4, 3), 4), ids], dim=1)
    masked = torch.cat([torch.full((4, 3), 2), ids[:, 1:]], dim=1)
    mask = torch.cat([torch.zeros(4, 3), torch.ones(4, 6)], dim=1)
    expected = model(ids).logits
    assert torch.equal(model(padded).logits[:, 3:], expected)
    assert torch.equal(model(masked, attention_mask=mask).logits[:, 2:], expected)


@pytest.mark.parametrize("network", networks(), ids=str)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_continuing_a_state_equals_one_pass(network, cut):
    model, ids = network.to_torch("float64"), with_boundary(network, strings(network, 5))
    first = model(ids[:, :cut], use_cache=True)
    before = first.past_key_values.state.clone()
    rest = model(ids[:, cut:], past_key_values=first.past_key_values)
    found = torch.cat([first.logits, rest.logits], dim=1)
    assert (found - model(ids).logits).abs().max() <= 1e-13
    assert torch.equal(first.past_key_values.state, before)
    kept = model(ids, logits_to_keep=1, return_dict=False)[0]
    assert kept.shape == (5, 1, network.vocab_size + 1)
    assert torch.equal(kept, model(ids).logits[:, -1:])


def test_rows_at_different_positions():
    network = per_step_isan(3, 3, 5, 4)
    model, tokens = network.to_torch("float64"), strings(network, 4)
    ids = with_boundary(network, tokens)
    for row, start in enumerate([0, 1, 2, 3]):
        ids[row, start] = 3
    found = model(ids).logits.detach().numpy()
    for row, start in enumerate([0, 1, 2, 3]):
        for t in range(start, 5):
            law = network.next_log_probs([tokens[row, start:t]])[0]
            assert np.abs(found[row, t, :-1] - law).max() <= 1e-12


# Generation and the horizon


@pytest.mark.parametrize("network", [ISAN.random(3, 3, 3, 4, scale=1.5), per_step_isan(2, 3, 3, 1)], ids=str)
def test_generated_strings_follow_the_law(network):
    """`check_frequencies` states the false-alarm probability (below 1e-8 per test)."""
    torch.manual_seed(0)
    drawn = network.to_torch("float64").generate(num_return_sequences=20_000).numpy()
    assert drawn.shape == (20_000, 4)
    assert (drawn[:, 0] == 3).all()
    expected = np.exp(network.score(np.indices((3, 3, 3)).reshape(3, -1).T))
    check_frequencies(drawn[:, 1:], expected, 3)


def test_generation_continues_prompts_of_different_lengths():
    """Greedy decoding against the network's own argmax; the shorter prompt is padded on the left."""
    network = per_step_isan(3, 4, 7, 3)
    model, prompts = network.to_torch("float64"), [[1, 2, 3], [2]]
    ids = torch.tensor([[4, 1, 2, 3], [4, 4, 4, 2]])
    found = model.generate(ids, do_sample=False, max_new_tokens=4)
    for row, prompt in enumerate(prompts):
        for token in found[row, 4:].tolist():
            assert token == network.next_log_probs([prompt])[0].argmax()
            prompt.append(token)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_likeliest_strings_in_order(seed):
    network = per_step_isan(3, 2, 5, seed)
    every = np.indices((2,) * 5).reshape(5, -1).T
    found = network.to_torch("float64").generate(num_beams=32, num_return_sequences=8, do_sample=False)
    np.testing.assert_array_equal(found[:, 1:], every[np.argsort(-network.score(every))[:8]])


@pytest.mark.parametrize("network", networks(), ids=str)
def test_strings_end_at_the_horizon(network):
    """After T tokens the boundary is certain, so generation stops however much is asked for."""
    boundary, horizon = network.vocab_size, network.horizon
    model = network.to_torch("float32")
    tokens = with_boundary(network, strings(network))
    last = model(tokens).logits[:, -1]
    assert torch.equal(last[:, -1], torch.zeros(len(tokens)))
    assert (last[:, :-1] == IMPOSSIBLE).all()
    drawn = model.generate(max_length=horizon + 9, num_return_sequences=7)
    assert drawn.shape == (7, horizon + 2)
    assert (drawn[:, -1] == boundary).all()
    assert (drawn[:, 1:-1] < boundary).all()
    assert model.generate().shape == (1, horizon + 1)


# Folders, and the oracle of transformers


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("network", networks(), ids=str)
def test_save_and_reload(network, dtype, tmp_path):
    model = network.to_torch(dtype)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    ids = with_boundary(network, strings(network))
    for kind in (ISANForCausalLM, AutoModelForCausalLM):
        again = kind.from_pretrained(tmp_path, dtype=dtype)
        assert type(again) is ISANForCausalLM
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert again.generation_config.top_k == 0
        assert again.generate(num_return_sequences=3).shape == (3, network.horizon + 1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("network", networks(), ids=str)
def test_a_transformer_oracle_on_the_folder_has_the_law(network, dtype, tmp_path):
    network.to_torch(dtype).save_pretrained(tmp_path)
    oracle = TransformerOracle.from_pretrained(tmp_path, device="cpu", dtype=dtype, horizon=network.horizon)
    assert (oracle.vocab_size, oracle.bos_token_id) == (network.vocab_size + 1, network.vocab_size)
    tokens = strings(network)
    found = laws(oracle, tokens)
    assert np.abs(found[:, :, :-1] - laws(network, tokens)).max() <= TOLERANCES[dtype]
    assert (found[:, :, -1] < -9_000).all()
    scale = max(1.0, np.abs(network.score(tokens)).max())
    assert np.abs(oracle.score(tokens) - network.score(tokens)).max() <= TOLERANCES[dtype] * scale
    np.testing.assert_array_equal(oracle.sample(50, 0) < network.vocab_size, True)


def test_a_transformer_oracle_refuses_strings_past_the_horizon():
    network = ISAN.random(3, 4, 6, 0)
    oracle = TransformerOracle(network.to_torch())
    oracle.advance(oracle.start(1), np.zeros((1, 6), dtype=int))
    with pytest.raises(HorizonError, match="max_position_embeddings = 7"):
        oracle.advance(oracle.start(1), np.zeros((1, 7), dtype=int))
    with pytest.raises(HorizonError):
        TransformerOracle(network.to_torch(), horizon=7)


# Training, and the way back


@pytest.mark.parametrize("network", networks(), ids=str)
def test_from_torch_is_the_inverse(network):
    tokens = strings(network)
    back = from_torch(network.to_torch("float64"))
    np.testing.assert_array_equal(back.score(tokens), network.score(tokens))
    assert (back.width, back.vocab_size, back.horizon) == (network.width, network.vocab_size, network.horizon)
    single = from_torch(network.to_torch("float32"))
    assert np.abs(single.score(tokens) - network.score(tokens)).max() <= 1e-4


def test_the_loss_is_minus_the_log_probability_per_token():
    network = per_step_isan(3, 3, 5, 0)
    tokens, model = strings(network), network.to_torch("float64")
    ids = with_boundary(network, tokens)
    loss = model(ids, labels=ids).loss
    assert float(loss.detach()) == pytest.approx(-network.score(tokens).mean() / 5, rel=1e-13)
    labels = ids.clone()
    labels[:, 3:] = -100
    first = laws(network, tokens)
    expected = np.mean([first[np.arange(20), t, tokens[:, t]] for t in range(2)])
    assert float(model(ids, labels=labels).loss.detach()) == pytest.approx(-expected, rel=1e-13)


@pytest.mark.parametrize("network", [ISAN.random(2, 3, 4, 0), per_step_isan(2, 3, 4, 1)], ids=str)
def test_gradients_are_those_of_the_loss(network):
    """Every parameter along a random direction, against central differences."""
    model, ids = network.to_torch("float64"), with_boundary(network, strings(network, 6))
    model(ids, labels=ids).loss.backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
                values.append(float(model(ids, labels=ids).loss))
                parameter -= step * direction
        slope = float((parameter.grad * direction).sum())
        assert abs(slope) > 1e-6, name
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5), name


def test_fine_tuning_approaches_another_network():
    """200 steps of Adam from a fresh model: the loss on the teacher's strings falls near its entropy."""
    teacher = ISAN.random(2, 2, 4, 3, scale=2.0)
    tokens = teacher.sample(500, 0)
    ids = with_boundary(teacher, tokens)
    torch.manual_seed(0)
    model = ISANForCausalLM(ISANConfig(3, 3, 4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(200):
        optimiser.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
    entropy = -teacher.score(tokens).mean() / 4
    before = -from_torch(ISANForCausalLM(ISANConfig(3, 3, 4))).score(tokens).mean() / 4
    after = -from_torch(model.eval()).score(tokens).mean() / 4
    assert after < entropy + 0.01 < before


# Errors, and imports


def test_wrong_arguments():
    network = ISAN.random(2, 3, 4, 0)
    model = network.to_torch()
    for bad in ([[0, 4]], [[-1, 0]]):
        with pytest.raises(TokenError, match=r"0\.\.3"):
            model(torch.tensor(bad))
    with pytest.raises(ParameterError, match="float16, bfloat16, float32 or float64"):
        network.to_torch("int8")
    with pytest.raises(ParameterError, match="logits_to_keep"):
        model(torch.tensor([[3, 0]]), labels=torch.tensor([[3, 0]]), logits_to_keep=1)
    with pytest.raises(ParameterError, match="has 4 tokens"):
        model.resize_token_embeddings(7)
    with pytest.raises(ParameterError, match="boundary token 3"):
        ISANConfig(4, 2, 4, bos_token_id=0)
    with pytest.raises(ParameterError, match="ISANForCausalLM"):
        from_torch(torch.nn.Linear(2, 2))


def test_half_precision_runs():
    network = ISAN.random(2, 3, 4, 0)
    for dtype in ("bfloat16", torch.float16):
        assert network.to_torch(dtype).generate(num_return_sequences=2).shape == (2, 5)


def test_oracles_do_not_need_torch():
    """Without torch, `import oracles` works and `to_torch` names the extra."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from oracles import ISAN; from oracles.errors import MissingDependencyError\n"
        "assert 'transformers' not in sys.modules\n"
        "try:\n    ISAN.random(2, 2, 2, 0).to_torch()\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch is not installed" in done.stdout
    assert "lrlm-sim[transformers]" in done.stdout
