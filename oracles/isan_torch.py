"""Input-switched affine networks as Hugging Face causal language models.

Tokens 0..A−1 are the network's; one more, the *boundary* A, is BOS, EOS and padding at once (as in
GPT-2). Reading it, anywhere, starts a new string: state x_0, position 0. So "BOS then tokens", left
padding with the boundary, and packed strings all have the law of `ISAN`. Before position T the
boundary has logit −10⁴, probability zero in every precision; after T tokens it is certain, so
`generate` stops there. No law follows T tokens: `oracles.TransformerOracle` says so by HorizonError.

Importing this module registers the classes, hence ``AutoModelForCausalLM.from_pretrained(folder)``
reads such a model without code from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from oracles.checks import as_integer
from oracles.errors import MissingDependencyError, ParameterError, TokenError
from oracles.isan import ISAN

try:
    import torch
    from torch import Tensor, nn
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GenerationConfig,
        GenerationMixin,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ModuleNotFoundError as error:
    raise MissingDependencyError(error.name or "torch", "transformers") from error

#: Logit of what cannot happen, beside log-probabilities: finite, so that losses and norms stay so.
IMPOSSIBLE = -1e4
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ISANConfig(PretrainedConfig):
    """Shape of an exported network.

    Arguments:
        vocab_size: A + 1, the boundary token included.
        width, horizon: d and T of the network.
        switched_steps, readout_steps: numbers of transition and readout arrays, 1 if one serves all steps.
        kwargs: those of `PretrainedConfig`.
    """

    model_type = "isan"
    attribute_map = {"hidden_size": "width"}  # noqa: RUF012 (the base class declares it so)

    def __init__(
        self,
        vocab_size: int = 3,
        width: int = 1,
        horizon: int = 1,
        switched_steps: int = 1,
        readout_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = as_integer("vocab_size", vocab_size, 2)
        self.width = as_integer("width", width, 1)
        self.horizon = as_integer("horizon", horizon, 1)
        self.switched_steps = as_integer("switched_steps", switched_steps, 1)
        self.readout_steps = as_integer("readout_steps", readout_steps, 1)
        boundary = self.vocab_size - 1
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if kwargs.setdefault(name, boundary) != boundary:
                raise ParameterError(f"{name} must be the boundary token {boundary}, got {kwargs[name]}")
        kwargs["max_position_embeddings"] = self.horizon + 1
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)
        self.max_position_embeddings = self.horizon + 1


@dataclass(eq=False)
class ISANCache:
    """State of a batch in `generate`: x (batch, d), position in the string (batch,), tokens read."""

    state: Float[Tensor, "batch d"]
    position: Int[Tensor, "batch"]
    length: int

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens read."""
        return self.length

    def reorder_cache(self, beam_idx: Int[Tensor, "batch"]) -> None:
        """Select batch rows, for beam search."""
        rows = beam_idx.to(self.state.device)
        self.state, self.position = self.state[rows], self.position[rows]


class ISANForCausalLM(PreTrainedModel, GenerationMixin):
    """z_t ~ softmax(B_t x_t), x_(t+1) = A_(t, z_t) x_t as a `PreTrainedModel` (arXiv:2510.24966, sec. 4).

    Logits are log-probabilities. A forward pass takes d² multiplications per token and A·d per law;
    `generate` carries x, so each further token costs the same. Made by `ISAN.to_torch`.

    Parameters: `initial` (d,); `embedding.weight` (A+1, steps·d²), row z the matrices of token z, the
    last row unused; `readouts` (steps, A, d).
    """

    config_class = ISANConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True  # a state cannot be rolled back: no assisted generation

    def __init__(self, config: ISANConfig) -> None:
        super().__init__(config)
        width, vocab = config.width, config.vocab_size
        self.initial = nn.Parameter(torch.empty(width))
        self.embedding = nn.Embedding(vocab, config.switched_steps * width * width)
        self.readouts = nn.Parameter(torch.empty(config.readout_steps, vocab - 1, width))
        self.post_init()

    @classmethod
    def from_isan(cls, network: ISAN, dtype: str | torch.dtype = "float32") -> ISANForCausalLM:
        """The network in a floating precision: "float16", "bfloat16", "float32" or "float64"."""
        precision = _as_dtype(dtype)
        vocab, width, horizon = network.vocab_size, network.width, network.horizon
        maps = network.transitions.reshape(-1, vocab, width, width)
        if len(maps) == 0:  # horizon 1, per step: nothing is ever read off what they give
            maps = np.zeros((1, vocab, width, width))
        readouts = network.readouts.reshape(-1, vocab, width)
        model = cls(ISANConfig(vocab + 1, width, horizon, len(maps), len(readouts)))
        nn.Module.to(model, dtype=precision)
        model.config.dtype = precision
        with torch.no_grad():
            model.initial.copy_(torch.from_numpy(network.initial))
            rows = np.swapaxes(maps, 0, 1).reshape(vocab, -1)
            model.embedding.weight.zero_()
            model.embedding.weight[:-1].copy_(torch.from_numpy(np.ascontiguousarray(rows)))
            model.readouts.copy_(torch.from_numpy(np.ascontiguousarray(readouts)))
        # ancestral sampling from the law itself, not the library's greedy or truncated defaults
        model.generation_config = GenerationConfig(
            bos_token_id=vocab,
            eos_token_id=vocab,
            pad_token_id=vocab,
            max_length=horizon + 1,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
        )
        return model.eval()

    def to_isan(self) -> ISAN:
        """The oracle of the present parameters, in float64."""
        config = self.config
        width, horizon, vocab = config.width, config.horizon, config.vocab_size - 1
        shape = (vocab, config.switched_steps, width, width)
        maps = np.swapaxes(_numpy(self.embedding.weight[:-1]).reshape(shape), 0, 1)
        readouts = _numpy(self.readouts)
        return ISAN(
            _numpy(self.initial),
            maps[0] if config.switched_steps == 1 else maps,
            readouts[0] if config.readout_steps == 1 else readouts,
            horizon,
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        past_key_values: ISANCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (batch, length, A+1) of the token after each position; masked tokens count as boundaries.

        Arguments:
            input_ids: tokens 0..A; the boundary A starts a string, and one is implied before the first.
            attention_mask: (batch, at least length), 1 where a token is to be read.
            past_key_values: what an earlier pass with `use_cache` returned.
            labels: (batch, length), usually `input_ids`; −100 is ignored. Shifted by one in here.
            logits_to_keep: only the last so many positions; 0 keeps all.

        Raises TokenError for tokens outside 0..A.
        """
        boundary = self.config.vocab_size - 1
        if input_ids.numel() and (input_ids.min() < 0 or input_ids.max() > boundary):
            raise TokenError(f"input_ids must be in 0..{boundary} (the last is the boundary)")
        if attention_mask is not None:
            seen = attention_mask[:, attention_mask.shape[1] - input_ids.shape[1] :]
            input_ids = torch.where(seen.to(torch.bool), input_ids, boundary)
        states, positions = self._run(input_ids, past_key_values)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self._logits(states[:, 1:][:, kept], positions[:, 1:][:, kept])
        loss = None if labels is None else _shifted_loss(logits, labels)
        memory = None
        if use_cache:
            before = 0 if past_key_values is None else past_key_values.length
            memory = ISANCache(states[:, -1], positions[:, -1], before + input_ids.shape[1])
        if return_dict is False:
            return tuple(part for part in (loss, logits, memory) if part is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=memory)  # pyright: ignore

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        past_key_values: ISANCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        **_: Any,
    ) -> dict[str, Any]:
        """Arguments of the next pass: the tokens that the state has not read."""
        read = 0 if past_key_values is None else past_key_values.length
        return {
            "input_ids": input_ids[:, read:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise ParameterError("the vocabulary of an ISAN is fixed: export another network")

    def get_output_embeddings(self) -> None:
        """None: the readout may change from step to step."""

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> Any:
        """The embedding; its size is fixed (ParameterError)."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ParameterError(
                f"an ISAN has {self.config.vocab_size} tokens for ever, got new_num_tokens={new_num_tokens}"
            )
        return self.embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        deviation = self.config.width**-0.5
        if module is self:
            nn.init.normal_(self.initial)
            nn.init.normal_(self.readouts, std=deviation)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)

    def _run(
        self, tokens: Int[Tensor, "batch length"], past: ISANCache | None
    ) -> tuple[Float[Tensor, "batch length2 d"], Int[Tensor, "batch length2"]]:
        """States and positions before the first token and after each."""
        batch, length = tokens.shape
        width, steps, horizon = self.config.width, self.config.switched_steps, self.config.horizon
        maps = self.embedding.weight.view(-1, steps, width, width)
        start = self.initial.expand(batch, width)
        state = start if past is None else past.state
        position = tokens.new_zeros(batch) if past is None else past.position
        fresh: Bool[Tensor, "batch length"] = tokens == self.config.vocab_size - 1
        states, positions = [state], [position]
        for t in range(length):
            chosen = maps[tokens[:, t], position.clamp(max=steps - 1)]
            moved = torch.bmm(chosen, state[:, :, None])[:, :, 0]
            # past position T−1 no law is read off the state: keep it, so that it cannot overflow
            moved = torch.where((position < horizon - 1)[:, None], moved, state)
            state = torch.where(fresh[:, t, None], start, moved)
            position = torch.where(fresh[:, t], 0, position + 1)
            states.append(state)
            positions.append(position)
        return torch.stack(states, dim=1), torch.stack(positions, dim=1)

    def _logits(
        self, states: Float[Tensor, "batch length d"], positions: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Log-probabilities of the A tokens, and of the boundary: certain from position T on."""
        if self.config.readout_steps == 1:
            logits = states @ self.readouts[0].T
        else:
            logits = self._by_position(
                states.flatten(0, 1), positions.flatten().clamp(max=len(self.readouts) - 1)
            )
            logits = logits.unflatten(0, positions.shape)
        laws = nn.functional.pad(torch.log_softmax(logits, dim=-1), (0, 1), value=IMPOSSIBLE)
        end = laws.new_full(laws.shape[-1:], IMPOSSIBLE)
        end[-1] = 0.0
        return torch.where((positions >= self.config.horizon)[..., None], end, laws)

    def _by_position(
        self, states: Float[Tensor, "reads d"], positions: Int[Tensor, "reads"]
    ) -> Float[Tensor, "reads A"]:
        """Readout of its own position for every state: one product per position, no gathered readouts."""
        present: Sequence[int] = positions.unique().tolist()
        if len(present) == 1:
            return states @ self.readouts[present[0]].T
        where = [(positions == p).nonzero()[:, 0] for p in present]
        parts = [states[rows] @ self.readouts[p].T for p, rows in zip(present, where, strict=True)]
        if not parts:
            return states @ self.readouts[0].T
        return torch.cat(parts)[torch.cat(where).argsort()]


def from_torch(module: ISANForCausalLM) -> ISAN:
    """The oracle of an exported (and perhaps fine-tuned) network, in float64; inverse of `ISAN.to_torch`."""
    if not isinstance(module, ISANForCausalLM):
        raise ParameterError(f"module must be an ISANForCausalLM, got {type(module).__name__}")
    return module.to_isan()


def _shifted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of −log P(label) in nats over the labels that are not −100, each predicted one position before."""
    if logits.shape[1] != labels.shape[1]:
        raise ParameterError("labels need the logits of all positions: leave logits_to_keep at 0")
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets)


def _numpy(values: Tensor) -> Float[np.ndarray, "..."]:
    return values.detach().cpu().double().numpy()


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    for known in _DTYPES:
        if dtype in (known, str(known).removeprefix("torch.")):
            return known
    raise ParameterError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype!r}")


AutoConfig.register("isan", ISANConfig, exist_ok=True)
AutoModelForCausalLM.register(ISANConfig, ISANForCausalLM, exist_ok=True)
