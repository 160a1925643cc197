"""TransformerOracle against plain forward passes, on small random models of several families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from oracles.base import Oracle
from oracles.errors import ParameterError
from oracles.transformer import TransformerOracle
from oracles.transformer_attention import attend_after
from oracles.transformer_network import Abilities
from tests.oracles.tiny_transformers import FAMILIES, VOCAB, tiny_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads of tiny matrix products only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama() -> TransformerOracle:
    return TransformerOracle(tiny_model("llama"), block_tokens=40)


def plain_laws(oracle: TransformerOracle, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities after every prefix of each row (with BOS: the empty one too; index from the end).

    One pass of the bare model without a cache.
    """
    start = [] if oracle.bos_token_id is None else [oracle.bos_token_id]
    ids = torch.tensor([[*start, *row] for row in np.asarray(tokens).tolist()])
    with torch.no_grad():
        logits = oracle.model(input_ids=ids, use_cache=False).logits.double()
    return torch.log_softmax(logits, dim=-1).numpy()


def some_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def ragged(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length) for length in lengths]


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request, folders) -> TransformerOracle:
    """Blocks of 100 tokens: bulk operations take several passes, of several histories each."""
    return TransformerOracle.from_pretrained(folders[request.param], device="cpu", block_tokens=100)


# The law, and the four operations


def test_laws_equal_a_plain_forward_pass(oracle):
    tokens = some_tokens(3, 12)
    expected = plain_laws(oracle, tokens)
    state = oracle.start(3)
    if oracle.bos_token_id is not None:
        assert np.abs(oracle.log_probs(state) - expected[:, 0]).max() <= TOLERANCE
    for t in range(12):
        state = oracle.advance(state, tokens[:, t])
        laws = oracle.log_probs(state)
        assert laws.dtype == np.float64
        assert np.abs(np.exp(laws).sum(axis=1) - 1).max() <= 1e-12
        assert np.abs(laws - expected[:, t - 12]).max() <= TOLERANCE


def test_caches_are_used(oracle):
    recurrent = type(oracle.model).__name__.startswith("Mamba")
    modern = int(transformers.__version__.split(".")[0]) >= 5  # before, Mamba's cache was a class of its own
    expected = ("tokens" if modern else "recompute") if recurrent else "chunks"
    able, family = oracle.network.abilities, oracle.model.config.model_type
    assert able.continuation == expected
    assert able.reads_head
    # Gemma 2 has attention of its own, and before version 5 masks were cut to the length of the keys
    assert able.shares_prefix == (modern and family not in ("gemma2", "mamba"))


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_chunks_equal_tokens_one_by_one(oracle, cut):
    tokens = some_tokens(3, 12, seed=cut)
    state = oracle.advance(oracle.advance(oracle.start(3), tokens[:, :cut]), tokens[:, cut:])
    assert np.abs(oracle.log_probs(state) - plain_laws(oracle, tokens)[:, -1]).max() <= TOLERANCE
    assert state.length == 12


def test_an_empty_chunk_changes_nothing(llama):
    state = llama.advance(llama.start(2), [[3, 4], [5, 6]])
    same = llama.advance(state, np.empty((2, 0), dtype=int))
    assert np.array_equal(llama.log_probs(same), llama.log_probs(state))


def test_states_are_values(oracle):
    tokens = some_tokens(3, 12)
    state = oracle.advance(oracle.start(3), tokens[:, :6])
    laws = oracle.log_probs(state)
    after = oracle.log_probs(oracle.advance(state, tokens[:, 6:]))
    oracle.advance(state, tokens[:, 6:] * 0 + 7)
    oracle.advance(state, tokens[:, 6])
    oracle.advance(oracle.advance(oracle.take(state, [2, 2, 0]), [9, 9, 9]), [4, 4, 4])
    assert np.array_equal(oracle.log_probs(state), laws)
    assert np.array_equal(oracle.log_probs(oracle.advance(state, tokens[:, 6:])), after)


def test_take_repeats_and_reorders_every_layer(oracle):
    rows = np.array([2, 0, 0, 1, 2])
    tokens, more = some_tokens(3, 7), some_tokens(5, 4, seed=1)
    expected = plain_laws(oracle, np.concatenate([tokens[rows], more], axis=1))
    taken = oracle.take(oracle.advance(oracle.start(3), tokens), rows)
    assert np.abs(oracle.log_probs(taken) - expected[:, -5]).max() <= TOLERANCE
    assert np.abs(oracle.log_probs(oracle.advance(taken, more)) - expected[:, -1]).max() <= TOLERANCE
    stepped = oracle.advance(taken, more[:, 0])
    assert np.abs(oracle.log_probs(stepped) - expected[:, -4]).max() <= TOLERANCE


def test_one_history_is_repeated_for_many_rows(oracle):
    tokens, more = some_tokens(1, 7), some_tokens(4, 3, seed=1)
    many = oracle.take(oracle.advance(oracle.start(1), tokens), np.zeros(4, dtype=int))
    again = oracle.take(many, [3, 1])  # rows of a memory whose rows share storage
    expected = plain_laws(oracle, np.concatenate([np.repeat(tokens, 4, axis=0), more], axis=1))[:, -1]
    assert np.abs(oracle.log_probs(oracle.advance(many, more)) - expected).max() <= TOLERANCE
    assert np.abs(oracle.log_probs(oracle.advance(again, more[[3, 1]])) - expected[[3, 1]]).max() <= TOLERANCE


def test_no_rows(oracle):
    state = oracle.take(oracle.advance(oracle.start(2), some_tokens(2, 3)), [])
    state = oracle.advance(state, np.empty((0, 2), dtype=int))
    assert oracle.log_probs(state).shape == (0, VOCAB)
    assert state.length == 5
    assert oracle.next_log_probs([]).shape == (0, VOCAB)
    assert oracle.extended_log_probs([], [[1]]).shape == (0, 1, VOCAB)
    assert oracle.extended_log_probs([[1]], []).shape == (1, 0, VOCAB)
    assert oracle.score(np.empty((0, 4), dtype=int), [1]).shape == (0,)


# Bulk operations


def test_ragged_histories(oracle):
    histories = ragged([9, 1, 4, 4, 12, 2, 30])
    histories += [histories[4][:5], histories[4][:11], histories[0], histories[6][:1]]
    expected = np.stack([plain_laws(oracle, h[None])[0, -1] for h in histories])
    assert np.abs(oracle.next_log_probs(histories) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mamba"])
def test_the_empty_history_is_bos(family):
    oracle = TransformerOracle(tiny_model(family), block_tokens=40)
    laws = oracle.next_log_probs([[], [3, 4]])
    assert np.abs(laws[0] - plain_laws(oracle, [[]])[0, 0]).max() <= TOLERANCE
    assert np.abs(oracle.next_log_probs([[]])[0] - laws[0]).max() <= TOLERANCE
    extended = oracle.extended_log_probs([[], [3]], [[4], []])
    assert (
        np.abs(extended - oracle.next_log_probs([[4], [], [3, 4], [3]]).reshape(2, 2, -1)).max() <= TOLERANCE
    )


@pytest.mark.parametrize("history", [[3], [5, 6, 7, 8, 9, 10]])
def test_score_is_the_sum_of_log_probs(oracle, history):
    sequences = some_tokens(11, 9)
    rows = np.concatenate([np.tile(history, (11, 1)), sequences], axis=1)
    laws = plain_laws(oracle, rows)[:, -10:-1]
    expected = np.take_along_axis(laws, sequences[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    assert np.abs(oracle.score(sequences, history) - expected).max() <= TOLERANCE
    assert np.abs(oracle.score(sequences[:1], history) - expected[:1]).max() <= TOLERANCE
    assert (
        np.abs(oracle.score(sequences[:, :1], history) - laws[np.arange(11), 0, sequences[:, 0]]).max() < 1e-4
    )
    assert oracle.score(sequences[:, :0], history).tolist() == [0.0] * 11


def test_score_from_the_start():
    oracle = TransformerOracle(tiny_model("llama"), block_tokens=40)
    sequences = some_tokens(5, 6)
    laws = plain_laws(oracle, sequences)[:, :-1]
    expected = np.take_along_axis(laws, sequences[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    assert np.abs(oracle.score(sequences) - expected).max() <= TOLERANCE


def test_extended_laws_are_those_of_the_concatenations(oracle):
    histories = [*ragged([5, 3, 5, 8, 1]), ragged([5])[0]]
    futures = [*ragged([4, 6, 1, 4, 2], seed=1), ragged([4, 6], seed=1)[1][:3], []]
    expected = np.stack([[plain_laws(oracle, [[*h, *f]])[0, -1] for f in futures] for h in histories])
    assert np.abs(oracle.extended_log_probs(histories, futures) - expected).max() <= TOLERANCE


def test_many_futures_after_long_histories(oracle, monkeypatch):
    """Long enough for prefixes that are read in place, beyond the windows of layers that slide."""
    wide = TransformerOracle(oracle.model, block_tokens=500)
    assert wide.network.abilities == oracle.network.abilities
    in_place = []

    def count(*arguments):
        in_place.append(True)
        return attend_after(*arguments)

    monkeypatch.setattr("oracles.transformer_attention.attend_after", count)
    histories, futures = ragged([30, 30, 21]), ragged([4, 3] * 16, seed=1)
    found = wide.extended_log_probs(histories, futures)
    for h, f in [(0, 0), (0, 31), (1, 1), (1, 30), (2, 7), (2, 16)]:
        expected = plain_laws(oracle, [[*histories[h], *futures[f]]])[0, -1]
        assert np.abs(found[h, f] - expected).max() <= TOLERANCE
    assert bool(in_place) == wide.network.abilities.shares_prefix


def test_block_sizes_do_not_matter(folders):
    histories, futures, sequences = ragged([5, 3, 5]), ragged([4, 6, 1, 4], seed=1), some_tokens(7, 5)
    answers = []
    for block_tokens in (1, 17, 10_000):
        oracle = TransformerOracle.from_pretrained(folders["gemma3"], "cpu", block_tokens=block_tokens)
        answers.append(
            [
                oracle.extended_log_probs(histories, futures),
                oracle.next_log_probs(futures),
                oracle.score(sequences, [1, 2]),
                oracle.sample(6, 3, history=[4], length=5),
            ]
        )
    for others in answers[1:]:
        for found, expected in zip(others, answers[0], strict=True):
            assert np.abs(found - expected).max() <= TOLERANCE


def test_samples_are_those_of_the_generic_sampler(llama):
    found = llama.sample(60, 0, history=[3, 4], length=4)  # two blocks of 40 rows
    assert np.array_equal(found, Oracle.sample(llama, 60, 0, history=[3, 4], length=4))
    assert np.array_equal(found[:7], llama.sample(7, 0, history=[3, 4], length=4))


@pytest.mark.parametrize("reads_head", [True, False])
@pytest.mark.parametrize("continuation", ["chunks", "tokens", "recompute"])
def test_every_way_of_continuing_gives_the_same_answers(llama, continuation, reads_head):
    other = TransformerOracle(llama.model, block_tokens=200)
    other.network.abilities = Abilities(reads_head, continuation)
    histories, futures, tokens = ragged([5, 3, 5]), ragged([4, 6, 1, 0, 4], seed=1), some_tokens(3, 9)
    pairs = [
        (oracle.extended_log_probs(histories, futures), oracle.score(tokens, [1, 2, 3]))
        for oracle in (llama, other)
    ]
    for found, expected in zip(*pairs, strict=True):
        assert np.abs(found - expected).max() <= TOLERANCE
    state = other.take(other.advance(other.start(3), tokens[:, :5]), [1, 1, 2])
    laws = other.log_probs(other.advance(state, tokens[[1, 1, 2], 5:]))
    assert np.abs(laws - plain_laws(llama, tokens)[[1, 1, 2], -1]).max() <= TOLERANCE


# Final hidden states and the unembedding


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gemma3", "mamba", "granite", "cohere"])
def test_centred_logits_are_hidden_states_times_the_unembedding(family):
    oracle = TransformerOracle(tiny_model(family), block_tokens=40, bos_token_id=1)
    histories, futures = ragged([5, 3]), ragged([4, 0, 6], seed=1)
    hidden, weight = oracle.final_hidden_states(histories, futures), oracle.unembedding()
    assert hidden.shape == (2, 3, 16)
    assert hidden.dtype == weight.dtype == np.float64
    laws = oracle.extended_log_probs(histories, futures)
    centred = laws - laws.mean(axis=-1, keepdims=True)
    assert np.abs(hidden @ (weight - weight.mean(axis=0)).T - centred).max() <= 1e-5
    assert np.abs(centred).max() > 0.1


def test_no_unembedding_with_a_soft_cap_or_a_bias():
    capped = tiny_model("gemma2")
    assert TransformerOracle(capped).unembedding() is None
    with torch.no_grad():
        capped.get_input_embeddings().weight *= 0.01  # tied: logits so small that the cap hardly bends them
    assert TransformerOracle(capped).unembedding() is None
    biased = tiny_model("gptj")
    with torch.no_grad():
        biased.lm_head.bias.normal_()
    assert TransformerOracle(biased).unembedding() is None


def test_hidden_states_need_an_output_layer_to_look_at(llama):
    blind = TransformerOracle(llama.model)
    blind.network.abilities = Abilities(False, "chunks")
    with pytest.raises(ParameterError, match="extended_log_probs"):
        blind.final_hidden_states([[1]], [[2]])


# Precision, determinism, memory


def test_precision_follows_dtype(folders):
    tokens = some_tokens(3, 8)
    double = TransformerOracle.from_pretrained(folders["llama"], "cpu", "float64")
    assert np.abs(double.next_log_probs(tokens) - plain_laws(double, tokens)[:, -1]).max() <= 1e-12
    half = TransformerOracle.from_pretrained(folders["llama"], "cpu", torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    laws = half.next_log_probs(tokens)
    assert 1e-6 < np.abs(laws - double.next_log_probs(tokens)).max() < 0.2
    assert np.abs(np.exp(laws).sum(axis=1) - 1).max() <= 1e-12
    assert half.network.abilities == double.network.abilities
    default = TransformerOracle.from_pretrained(folders["llama"], "cpu")
    assert default.model.dtype == torch.float32


def test_deterministic_changes_nothing_on_a_cpu(llama):
    oracle = TransformerOracle(llama.model, deterministic=True)
    assert np.array_equal(oracle.next_log_probs([[1, 2, 3]]), llama.next_log_probs([[1, 2, 3]]))
    assert not torch.are_deterministic_algorithms_enabled()


class Scarce:
    """A forward method that runs out of memory above some number of rows, and counts how often."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        self.forward, self.rows, self.failures = model.forward, rows, 0

    def __call__(self, input_ids: torch.Tensor, **arguments: object) -> object:
        if len(input_ids) > self.rows:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")
        return self.forward(input_ids=input_ids, **arguments)


def test_out_of_memory_halves_the_block(llama):
    model = tiny_model("llama")
    oracle = TransformerOracle(model)
    oracle.next_log_probs([[1]])  # the measurement takes two rows
    model.forward = scarce = Scarce(model, rows=3)
    histories, futures, sequences = ragged([5] * 9), ragged([4, 3, 4, 2, 1], seed=1), some_tokens(9, 4)
    for ask in (
        lambda o: o.next_log_probs(histories),
        lambda o: o.extended_log_probs(histories, futures),
        lambda o: o.score(sequences, [1, 2, 3]),
        lambda o: o.sample(9, 0, length=3),
    ):
        before = scarce.failures
        assert np.abs(ask(oracle) - ask(llama)).max() <= TOLERANCE
        assert 0 < scarce.failures - before <= 8
    scarce.rows = 0
    with pytest.raises(torch.OutOfMemoryError):
        oracle.next_log_probs(histories)


def test_without_bos():
    oracle = TransformerOracle(tiny_model("llama-without-bos"))
    tokens = some_tokens(2, 5)
    assert oracle.bos_token_id is None
    state = oracle.advance(oracle.start(2), tokens)
    assert np.abs(oracle.log_probs(state) - plain_laws(oracle, tokens)[:, -1]).max() <= TOLERANCE
    found = oracle.extended_log_probs([[], [3]], [[4, 5], [6]])
    expected = oracle.next_log_probs([[4, 5], [6], [3, 4, 5], [3, 6]]).reshape(2, 2, -1)
    assert np.abs(found - expected).max() <= TOLERANCE
    for ask in (
        lambda: oracle.log_probs(oracle.start(1)),
        lambda: oracle.next_log_probs([[3], []]),
        lambda: oracle.score(tokens),
        lambda: oracle.sample(2, 0, length=3),
        lambda: oracle.extended_log_probs([[]], [[]]),
    ):
        with pytest.raises(ParameterError, match="bos_token_id="):
            ask()
