"""Any Hugging Face causal language model as an oracle: transformers, Mamba, and their hybrids.

Numbers: logits come out of the network in its own precision; everything after them (centring,
log-softmax, sums) is float64. Results of a row depend on the batch around it only by the rounding
of the network's matrix products, about 1e-6 in float32.

Tokens are the network's own: `vocab_size` is the width of its output layer, which many models pad
beyond their tokenizer. The padding tokens have probabilities like any other and belong to the law. Where
a model masks tokens instead, they have probability zero, and centred logits are those of `restricted`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from oracles.base import Oracle
from oracles.checks import (
    as_chunk,
    as_generator,
    as_integer,
    as_rows,
    as_strings,
    as_tokens,
    check_length,
)
from oracles.errors import HorizonError, MissingDependencyError, ParameterError

try:
    import torch
    from transformers import PreTrainedModel

    from oracles.transformer_cache import TransformerState, take_memory
    from oracles.transformer_loading import (
        bos_token,
        choose_devices,
        choose_dtype,
        hash_folder,
        load_model,
        load_tokenizer,
        local_folder,
        max_context,
    )
    from oracles.transformer_network import CachedNetwork, Reading, non_finite
    from oracles.transformer_plan import BulkReader, Store, deal, run_blocks
    from oracles.transformer_tree import ReadingPlan
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "torch", "transformers") from error

#: Tokens in one pass, per thread of a CPU (activations stay in its cache) and on other devices.
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 32768
#: Logits kept at once.
_CPU_LOGITS, _DEVICE_LOGITS = 1 << 24, 1 << 28


class TransformerOracle(Oracle):
    """A causal language model of the `transformers` library.

    Arguments:
        model: a `PreTrainedModel` in memory, on its device. It is put into evaluation mode, and its
            weights must not change during the life of a state.
        tokenizer: kept as `.tokenizer` for the user; the oracle itself reads and writes token numbers.
        horizon: T if strings end there; None (default) means unbounded.
        bos_token_id: the token before every history. None: the model's own, from its configuration,
            its generation settings or the tokenizer, if it has one; ``"none"``: do without.
        deterministic: use deterministic GPU kernels; CUDA wants CUBLAS_WORKSPACE_CONFIG=:4096:8 in the
            environment for that. On a CPU they always are.
        block_tokens: most tokens in one forward pass of the bulk operations (default by device).
        identity: text that names the weights in persistent caches, or the folder whose safetensors files
            and configuration are hashed for that (when first asked).
        replicas: the same model on further devices; bulk questions are dealt out among all of them.

    Histories are given without BOS. A model without BOS has no law of the empty history: asking for it
    raises ParameterError. A context longer than the model's `max_position_embeddings`, BOS included,
    raises HorizonError; NaN logits raise NonFiniteError.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        horizon: int | None = None,
        bos_token_id: int | Literal["none"] | None = None,
        deterministic: bool = False,
        block_tokens: int | None = None,
        identity: str | Path | None = None,
        replicas: Sequence[torch.nn.Module] = (),
    ) -> None:
        networks = [CachedNetwork(_as_model(each), deterministic) for each in (model, *replicas)]
        self.network, self.model, self.tokenizer = networks[0], networks[0].model, tokenizer
        self.vocab_size = self.network.vocab_size
        self.bos_token_id = bos_token(self.model, tokenizer, bos_token_id, self.vocab_size)
        self.max_context = max_context(self.model)
        self.horizon = None if horizon is None else as_integer("horizon", horizon, 1)
        self._source = identity
        self._start = [] if self.bos_token_id is None else [self.bos_token_id]
        cpu = self.network.device.type == "cpu"
        tokens = _CPU_TOKENS * max(2, torch.get_num_threads()) if cpu else _DEVICE_TOKENS
        if block_tokens is not None:
            tokens = as_integer("block_tokens", block_tokens, 1)
        logits = _CPU_LOGITS if cpu else _DEVICE_LOGITS
        self._readers = [BulkReader(network, tokens, logits) for network in networks]
        self._reader = self._readers[0]
        if horizon is not None:
            self._check_context(horizon)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        horizon: int | None = None,
        bos_token_id: int | Literal["none"] | None = None,
        deterministic: bool = False,
        block_tokens: int | None = None,
    ) -> TransformerOracle:
        """Load a model from a folder (no network is touched) or by its name on the Hugging Face Hub.

        `device`: None or "auto" takes CUDA, then Apple's MPS, then the CPU; several, as a list or
        "cuda:0,cuda:1", get a replica each. `dtype`: None is the
        model's own precision on CUDA and float32 elsewhere. Weights are read from safetensors only,
        and code that comes with a model is never run. Raises FormatError where that is not enough.
        """
        places, folder = choose_devices(device), local_folder(name_or_path)
        precision = choose_dtype(dtype, places[0])
        source = str(name_or_path) if folder is None else str(folder)
        options = {"local_files_only": folder is not None, "revision": revision, "trust_remote_code": False}
        model, *replicas = [load_model(source, precision, place, options) for place in places]
        tokenizer = load_tokenizer(source, folder, options)
        commit = getattr(model.config, "_commit_hash", None)
        return cls(
            model,
            tokenizer,
            horizon=horizon,
            bos_token_id=bos_token_id,
            deterministic=deterministic,
            block_tokens=block_tokens,
            identity=folder or f"{name_or_path}@{commit or revision}",
            replicas=replicas,
        )

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"TransformerOracle({type(self.model).__name__}, vocab_size={self.vocab_size}, "
            f"horizon={self.horizon}, bos_token_id={self.bos_token_id}, {dtype}, {self.network.device})"
        )

    @property
    def identity(self) -> str | None:
        """Weights, precision and BOS in one text; None for a model in memory that was given no name."""
        if self._weights is None:
            return None
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"transformers:{self._weights}/{dtype}/bos={self.bos_token_id}"

    @cached_property
    def _weights(self) -> str | None:
        return hash_folder(self._source) if isinstance(self._source, Path) else self._source

    def start(self, batch: int) -> TransformerState:
        return TransformerState(as_integer("batch", batch, 0), 0, None, None)

    def advance(self, state: TransformerState, tokens: ArrayLike) -> TransformerState:
        chunk = as_chunk(tokens, state.batch, self.vocab_size)
        length = state.length + chunk.shape[1]
        check_length(length, self.horizon)
        self._check_context(length)
        if chunk.shape[1] == 0:
            return state
        if state.batch == 0:
            return TransformerState(0, length, None, None)
        if state.memory is None:
            chunk = self._with_start(chunk)
        rows = np.arange(state.batch)
        reading = self._reader.read(chunk, rows, rows * 0 + chunk.shape[1] - 1, state.memory, keep=True)
        return TransformerState(state.batch, length, reading.memory, reading.logits)

    def log_probs(self, state: TransformerState) -> Float[np.ndarray, "batch vocab"]:
        self._check_follows(state.length)
        if state.batch == 0:
            return np.empty((0, self.vocab_size))
        if state.logits is not None:
            return self._laws(state.logits)
        self._check_start()
        first = np.zeros(1, dtype=np.int64)
        law = self._laws(self._reader.read(self._with_start(first[:, None][:, :0]), first, first).logits)
        return np.repeat(law, state.batch, axis=0)

    def take(self, state: TransformerState, rows: ArrayLike) -> TransformerState:
        chosen = as_rows(rows, state.batch)
        if state.memory is None or len(chosen) == 0:
            return TransformerState(len(chosen), state.length, None, None)
        index = self._reader.tensor(chosen)
        logits = None if state.logits is None else state.logits[index.to(state.logits.device)]
        return TransformerState(len(chosen), state.length, take_memory(state.memory, index), logits)

    def sample(
        self,
        n: int,
        rng: np.random.Generator | int | None = None,
        history: ArrayLike | None = None,
        length: int | None = None,
    ) -> Int[np.ndarray, "n length"]:
        """Ancestral sampling in row blocks; same strings as in one block, whatever its size."""
        generator = as_generator(rng)
        prefix, length = self._span(history, length)
        self._check_context(len(prefix) + length - 1)
        out = np.empty((as_integer("n", n, 0), length), dtype=np.int64)
        mark = generator.bit_generator.state

        def work(low: int, high: int) -> None:
            nonlocal mark
            generator.bit_generator.state = mark  # a block that ran out of memory is drawn again
            out[low:high] = super(TransformerOracle, self).sample(high - low, generator, prefix, length)
            mark = generator.bit_generator.state

        run_blocks(np.tile([1, self.vocab_size], (n, 1)), self._reader.budgets.copy(), work)
        return out

    def score(self, sequences: ArrayLike, history: ArrayLike | None = None) -> Float[np.ndarray, "n"]:
        """Log P(sequence | history): one pass over all positions, the history read once where possible."""
        sequences = as_tokens("sequences", sequences, self.vocab_size, 2)
        prefix, length = self._span(history, sequences.shape[1])
        total = np.zeros(len(sequences))
        if sequences.size == 0:
            return total
        self._check_context(len(prefix) + length - 1)
        prefix = self._with_start(prefix[None])
        if prefix.shape[1] == 0:
            self._check_start()
        begin, behind = None, np.broadcast_to(prefix, (len(sequences), prefix.shape[1]))
        strings = np.concatenate([behind, sequences[:, :-1]], axis=1)
        first = prefix.shape[1] - 1  # the position whose law is that of the first token
        chunks = self.network.abilities.continuation == "chunks"
        if chunks and len(sequences) > 1 and prefix.shape[1] > 1 and length > 1:
            begin, strings, first = prefix[:, :-1], strings[:, first:], 0

        def store(_: np.ndarray, reads: np.ndarray, reading: Reading) -> None:
            row, t = np.divmod(reads, length)
            logits = self._float64(reading.logits)
            chosen = logits.gather(1, self._reader.tensor(sequences[row, t]).to(logits.device)[:, None])
            values = (chosen[:, 0] - logits.logsumexp(dim=1)).cpu().numpy()
            if np.isnan(values).any():
                raise non_finite(self.model.dtype)
            np.add.at(total, row, values)

        n, width = strings.shape
        places = np.repeat(np.arange(n), length), np.tile(np.arange(first, width), n), np.arange(n * length)
        plan = ReadingPlan.of(strings, np.full(n, width), places)

        def work(reader: BulkReader, rows: Int[np.ndarray, "part"]) -> None:
            shared = None if begin is None else reader.read(begin, [], [], keep=True).memory
            reader.read_plan(plan.take(rows), store, shared)

        deal(self._readers, np.arange(n), work)
        return total

    def next_log_probs(self, histories: Sequence[ArrayLike] | np.ndarray) -> Float[np.ndarray, "n vocab"]:
        """Passes over the prefix tree of the histories: what many have in common is read once."""
        strings = as_strings("histories", histories, self.vocab_size)
        out = np.empty((len(strings), self.vocab_size))
        if not strings:
            return out
        longest = max(map(len, strings))
        self._check_follows(longest)
        self._check_context(longest)
        if min(map(len, strings)) == 0:
            self._check_start()

        started = [self._with_start(string[None])[0] for string in strings]

        def work(reader: BulkReader, rows: Int[np.ndarray, "part"]) -> None:
            def store(_: np.ndarray, which: np.ndarray, reading: Reading) -> None:
                out[rows[which]] = self._laws(reading.logits)

            reader.read_strings([started[i] for i in rows], store)

        # neighbours in lexicographic order share most
        order = sorted(range(len(started)), key=lambda i: started[i].tolist())
        deal(self._readers, np.array(order), work)
        return out

    def extended_log_probs(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f vocab"]:
        """Log P(· | h∘f): every history is read once, the futures as chunks after its memory.

        Reads n_h·T_h + n_h·n_f·T_f tokens in place of the n_h·n_f·(T_h + T_f) of the plain pass.
        """
        heads = as_strings("histories", histories, self.vocab_size)
        tails = as_strings("futures", futures, self.vocab_size)
        out = np.empty((len(heads), len(tails), self.vocab_size))

        def store(h: np.ndarray, f: np.ndarray, reading: Reading) -> None:
            out[h, f] = self._laws(reading.logits)

        self._read_grid(heads, tails, store)
        return out

    def final_hidden_states(
        self, histories: Sequence[ArrayLike] | np.ndarray, futures: Sequence[ArrayLike] | np.ndarray
    ) -> Float[np.ndarray, "n_h n_f width"]:
        """What the output layer sees after h∘f, float64 (n_h, n_f, width).

        Where `unembedding` W is not None the centred logits are X · W_cᵀ, with W_c = W minus the mean
        of its rows. Raises ParameterError if the model does not show its output layer's input.
        """
        heads = as_strings("histories", histories, self.vocab_size)
        tails = as_strings("futures", futures, self.vocab_size)
        head = self.network.head
        if head is None or not self.network.abilities.reads_head:
            raise ParameterError(
                f"{type(self.model).__name__} has no linear output layer to look at: use extended_log_probs"
            )
        out = np.empty((len(heads), len(tails), head.in_features))

        def store(h: np.ndarray, f: np.ndarray, reading: Reading) -> None:
            out[h, f] = self._float64(reading.hidden).cpu().numpy()

        self._read_grid(heads, tails, store, logits=False)
        return out

    def kept_logits(
        self,
        histories: Sequence[ArrayLike] | np.ndarray,
        futures: Sequence[ArrayLike] | np.ndarray,
        tokens: Int[np.ndarray, "n_f k"],
    ) -> Float[np.ndarray, "n_h n_f k"]:
        """Final hidden states times the kept columns of the unembedding, minus its mean row, on the device.

        n_h·n_f·k·width products in place of n_h·n_f·vocab_size·width; the usual way where the output
        layer is not linear.
        """
        head, scale = self.network.head, self.network.abilities.scale
        if head is None or scale is None:
            return super().kept_logits(histories, futures, tokens)
        heads = as_strings("histories", histories, self.vocab_size)
        tails = as_strings("futures", futures, self.vocab_size)
        kept = as_tokens("tokens", tokens, self.vocab_size, 2)
        out = np.empty((len(heads), len(tails), kept.shape[1]))
        weights = {reader.network.device: reader.network.unembedding() for reader in self._readers}

        def store(h: np.ndarray, f: np.ndarray, reading: Reading) -> None:
            weight, mean = weights[reading.hidden.device]
            hidden = reading.hidden.float()
            columns = weight[torch.from_numpy(kept[f]).to(weight.device)].float()
            logits = torch.bmm(columns, hidden[:, :, None])[:, :, 0] - (hidden @ mean)[:, None]
            values = scale * self._float64(logits).cpu().numpy()
            if np.isnan(values).any():
                raise non_finite(self.model.dtype)
            out[h, f] = values

        self._read_grid(heads, tails, store, logits=False)
        return out

    def unembedding(self) -> Float[np.ndarray, "vocab width"] | None:
        """W, float64 (vocab_size, width), where logits = final hidden state · Wᵀ; None where they are not.

        The identity is measured once on the model, at two scales of the hidden states. A constant
        factor (Granite, Cohere) is folded into W; an output bias or a soft cap (Gemma 2) gives None.
        """
        head, scale = self.network.head, self.network.abilities.scale
        if head is None or scale is None:
            return None
        return scale * self._float64(head.weight.detach()).cpu().numpy()

    def _read_grid(
        self, heads: list[np.ndarray], tails: list[np.ndarray], store: Store, logits: bool = True
    ) -> None:
        """Give store(h, f, reading) the reads after every history ∘ future."""
        if not heads or not tails:
            return
        longest = max(map(len, heads)) + max(map(len, tails))
        self._check_follows(longest)
        self._check_context(longest)
        if min(map(len, heads)) + min(map(len, tails)) == 0:
            self._check_start()
        started = [self._with_start(head[None])[0] for head in heads]

        def work(reader: BulkReader, rows: Int[np.ndarray, "part"]) -> None:
            def place(h: np.ndarray, f: np.ndarray, reading: Reading) -> None:
                store(rows[h], f, reading)

            reader.read_grid([started[i] for i in rows], tails, place, logits)

        deal(self._readers, np.arange(len(started)), work)

    def _float64(self, values: torch.Tensor) -> torch.Tensor:
        return (values.cpu() if values.device.type == "mps" else values).double()

    def _laws(self, logits: torch.Tensor) -> Float[np.ndarray, "reads vocab"]:
        """Log-softmax in float64. A NaN or +∞ logit makes its whole row NaN, so one column tells."""
        laws = torch.log_softmax(self._float64(logits), dim=-1)
        if torch.isnan(laws[:, :1]).any():
            raise non_finite(self.model.dtype)
        return laws.cpu().numpy()

    def _with_start(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n length2"]:
        start = np.array(self._start, dtype=np.int64)
        return np.concatenate([np.broadcast_to(start, (len(tokens), len(start))), tokens], axis=1)

    def _check_start(self) -> None:
        if not self._start:
            raise ParameterError(
                "this model has no BOS token, hence no law of the empty history: give bos_token_id="
            )

    def _check_follows(self, length: int) -> None:
        if self.horizon is not None and length >= self.horizon:
            raise HorizonError(f"no token follows after horizon = {self.horizon} tokens, got {length}")

    def _check_context(self, length: int) -> None:
        total = length + len(self._start)
        if self.max_context is not None and total > self.max_context:
            raise HorizonError(
                f"the model reads at most max_position_embeddings = {self.max_context} tokens, got {total} "
                f"(BOS: {len(self._start)}): shorten the history"
            )


def _as_model(model: torch.nn.Module) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise ParameterError(
            f"model must be a transformers PreTrainedModel, got {type(model).__name__}: merge adapters"
        )
    return model
