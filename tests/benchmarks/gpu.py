"""Real-model speed on an accelerator, in one call of under eight minutes.

    python -m tests.benchmarks.gpu [--out results.json] [--seconds 240]

On a model of OLMo-1b's shape (random weights, bf16), with histories and futures of 32 tokens:

- agreement: shared-prefix attention against the copied prefix, in bf16 and float32, and with the CPU;
- plain / oracle: the library's batched forward on h∘f (last-position logits, fastest of several block
  sizes) against `TransformerOracle.final_hidden_states`, and how many tokens each read;
- achieved flop/s (2 · parameters without the embedding · tokens + attention) over the flop/s of a large
  bf16 product on the same device, and the peak memory;
- a grid of n × n (1000 × 1000 where the seconds allow) and its streamed spectrum.

``--device cpu --small`` runs the same code on a tiny model, to test it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lrlm_sim.spectra import hidden_state_singular_values
from oracles.transformer import TransformerOracle

LENGTH = 32
OLMO_1B = {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def random_model(shape: dict[str, int], heads: int, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """A Llama with random weights, tied embeddings, no BOS."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def seconds_of(task: Callable[[], object], device: str, repeats: int = 3) -> float:
    """Least wall time of a task, the device's queue emptied."""
    best = np.inf
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        task()
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return best


def product_speed(device: str, dtype: torch.dtype, size: int) -> float:
    """Flop/s of a size³ matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, b), device, 10)


def plain_pass(model: LlamaForCausalLM, tokens: torch.Tensor, rows: int) -> None:
    """Last-position logits of every row, `rows` at a time."""
    with torch.inference_mode():
        for part in tokens.split(rows):
            model(part, use_cache=False, logits_to_keep=1)


def flops(model: LlamaForCausalLM, tokens: int, keys: float) -> float:
    """Products of `tokens` tokens through the layers, each attending to `keys` keys on average."""
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    width = model.config.hidden_size * model.config.num_hidden_layers
    return tokens * (2.0 * layers + 4.0 * keys * width)


def agreement(shape: dict[str, int], heads: int, device: str) -> dict[str, Any]:
    """Largest difference of log-probabilities: prefix in place against copied, and device against CPU."""
    found: dict[str, Any] = {}
    shape = {**shape, "num_hidden_layers": 2}
    rng = np.random.default_rng(0)
    histories, futures = rng.integers(0, 97, (3, 70)), rng.integers(0, 97, (80, 5))
    reference = TransformerOracle(random_model(shape, heads, torch.float32, "cpu"))
    expected = reference.extended_log_probs(histories, futures)
    for dtype in (torch.float32, torch.bfloat16):
        oracle = TransformerOracle(random_model(shape, heads, torch.float32, device).to(dtype))
        in_place = oracle.extended_log_probs(histories, futures)
        oracle.network._sharing = lambda *_: None  # type: ignore[method-assign]
        copied = oracle.extended_log_probs(histories, futures)
        found[str(dtype).removeprefix("torch.")] = {
            "shares_prefix": oracle.network.abilities.shares_prefix,
            "in place against copied": float(np.abs(in_place - copied).max()),
            "device against cpu float32": float(np.abs(in_place - expected).max()),
        }
    return found


def speed(model: LlamaForCausalLM, device: str, n_h: int, n_f: int, peak: float) -> dict[str, float]:
    """Plain forward passes against the oracle on one grid."""
    vocab = model.config.vocab_size
    rng = np.random.default_rng(0)
    histories, futures = rng.integers(0, vocab, (n_h, LENGTH)), rng.integers(0, vocab, (n_f, LENGTH))
    oracle = TransformerOracle(model)
    oracle.final_hidden_states(histories[:1], futures[:8])  # measures the model's abilities
    _reset_memory(device)
    ours = seconds_of(lambda: oracle.final_hidden_states(histories, futures), device)
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    pairs = np.concatenate([np.repeat(histories[:1], n_f, axis=0), futures], axis=1)
    tokens = torch.tensor(pairs, device=device)
    plain = min(
        seconds_of(lambda rows=rows: plain_pass(model, tokens, rows), device) for rows in (64, 256, 1024)
    )
    read = n_h * LENGTH + n_h * n_f * LENGTH
    work = flops(model, n_h * n_f * LENGTH, LENGTH + LENGTH / 2) + flops(model, n_h * LENGTH, LENGTH / 2)
    return {
        "n_h": n_h,
        "n_f": n_f,
        "plain / oracle": plain * n_h / ours,
        "ideal": n_h * n_f * 2 * LENGTH / read,
        "oracle tokens per second": read / ours,
        "plain tokens per second": n_f * 2 * LENGTH / plain,
        "oracle flop/s over a large product's": work / ours / peak,
        "peak memory, GB": memory / 1e9,
        "seconds per history": ours / n_h,
    }


def spectrum(model: LlamaForCausalLM, n: int) -> dict[str, float]:
    """All-token spectrum of an n × n grid through final hidden states, wall seconds of each part."""
    vocab = model.config.vocab_size
    rng = np.random.default_rng(1)
    histories, futures = rng.integers(0, vocab, (n, LENGTH)), rng.integers(0, vocab, (n, LENGTH))
    oracle = TransformerOracle(model)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        width = model.config.hidden_size
        states = np.memmap(Path(folder) / "states", np.float32, "w+", shape=(n, n, width))
        for low in range(0, n, 8):
            states[low : low + 8] = oracle.final_hidden_states(histories[low : low + 8], futures)
        read = time.perf_counter()
        weights = oracle.unembedding()
        assert weights is not None
        sigma = hidden_state_singular_values(states[:, : min(n, 200)], weights - weights.mean(axis=0))
        end = time.perf_counter()
    return {
        "n": n,
        "grid, seconds": read - begin,
        "spectrum of 200 futures, seconds": end - read,
        "sigma_1": float(sigma[0]),
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _reset_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def main(argv: list[str] | None = None) -> None:
    """Run every part, print each as it is there, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model and grid")
    parser.add_argument("--seconds", type=float, default=240, help="for the large grid")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    device, small = options.device, options.small
    shape, heads, dtype = (TINY, 2, torch.float32) if small else (OLMO_1B, 16, torch.bfloat16)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    report: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def record(part: str, value: Any) -> None:
        report[part] = value
        print(part, json.dumps(value, indent=2), flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=2) + "\n")

    record("agreement", agreement(shape if small else {**shape, "vocab_size": 1000}, heads, device))
    peak = product_speed(device, dtype, 256 if small else 8192)
    record("large product, flop/s", peak)
    model = random_model(shape, heads, dtype, device)
    sizes = [(3, 20)] if small else [(4, 250), (8, 1000)]
    found: dict[str, float] = {}
    for n_h, n_f in sizes:
        found = speed(model, device, n_h, n_f, peak)
        record(f"grid {n_h} x {n_f}", found)
    n = 8 if small else min(1000, int(options.seconds / found["seconds per history"]) // 8 * 8)
    record("large grid", spectrum(model, n))


if __name__ == "__main__":
    main()
