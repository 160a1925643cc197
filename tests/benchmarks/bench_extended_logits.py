"""How much reading every history once saves: ratios of `extended_log_probs` to plain batched passes.

    python -m tests.benchmarks.bench_extended_logits [--histories 4] [--futures 64] [--repeats 5]

For random Llama models it times, taking turns within one run,

- plain: the library's own forward pass on all h∘f, in blocks, at the fastest of several block sizes;
- oracle: `TransformerOracle.extended_log_probs` as it comes: narrow models packed, wide ones through the
  library;
- library: the oracle without packing;
- floor: the library's pass on the futures alone.

`ideal` is the ratio of tokens read, n_h·n_f·(T_h + T_f) / (n_h·T_h + n_h·n_f·T_f). `product` is the
flop/s of the oracle's matrix products over those of one large product in the same run. With more than
one thread, times are wall times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oracles.transformer import TransformerOracle

VOCAB = 512
#: (width, layers, T_h, T_f, share of the histories asked for)
CASES = [
    (64, 5, 32, 32, 1.0),
    (64, 5, 64, 16, 1.0),
    (64, 5, 256, 16, 0.5),
    (256, 5, 32, 32, 0.25),
    (512, 2, 128, 16, 0.5),
]
PLAIN_BLOCKS = (512, 1024, 2048, 4096)
PRODUCT = 1536


def random_llama(width: int, layers: int) -> LlamaForCausalLM:
    """Four heads, the usual feed-forward width, no BOS."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            initializer_range=0.1,
            bos_token_id=None,
        )
    ).eval()


def plain_pass(model: LlamaForCausalLM, tokens: torch.Tensor, block_tokens: int) -> np.ndarray:
    """Next-token log-probabilities (float64) after each row."""
    rows = max(1, block_tokens // tokens.shape[1])
    with torch.inference_mode():
        parts = [
            torch.log_softmax(model(part, use_cache=False, logits_to_keep=1).logits[:, 0].double(), dim=-1)
            for part in tokens.split(rows)
        ]
        return torch.cat(parts).numpy()


def best_times(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least time of each task; the tasks take turns, so that all see the same machine.

    Processor time with one thread, which others on the machine change less; else wall time.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(repeats):
        for name, task in tasks.items():
            begin = clock()
            task()
            best[name] = min(best[name], clock() - begin)
    return best


def product_flops(model: LlamaForCausalLM, tokens: int, reads: int) -> float:
    """Flops of the matrix products of a plain pass over `tokens` tokens, read at `reads` places."""
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    return 2.0 * (tokens * layers + reads * model.lm_head.weight.numel())


def run_case(width: int, layers: int, t_h: int, t_f: int, n_h: int, n_f: int, repeats: int) -> None:
    """Check the answers once, then print one line of ratios."""
    rng = np.random.default_rng(0)
    histories, futures = rng.integers(0, VOCAB, (n_h, t_h)), rng.integers(0, VOCAB, (n_f, t_f))
    pairs = [np.repeat(histories, n_f, axis=0), np.tile(futures, (n_h, 1))]
    whole = torch.tensor(np.concatenate(pairs, axis=1))
    alone = whole[:, t_h:].contiguous()
    model = random_llama(width, layers)
    oracle = TransformerOracle(model)
    found = oracle.extended_log_probs(histories, futures).reshape(n_h * n_f, VOCAB)
    gap = np.abs(found - plain_pass(model, whole, 2048)).max()
    library = TransformerOracle(model)
    library.network.packed = lambda *_: None  # type: ignore[method-assign]
    square = torch.randn(PRODUCT, PRODUCT)
    tasks: dict[str, Callable[[], object]] = {
        "oracle": lambda: oracle.extended_log_probs(histories, futures),
        "library": lambda: library.extended_log_probs(histories, futures),
        "product": lambda: square @ square,
    }
    for block in PLAIN_BLOCKS:
        tasks[f"plain {block}"] = lambda block=block: plain_pass(model, whole, block)
        tasks[f"floor {block}"] = lambda block=block: plain_pass(model, alone, block)
    times = best_times(tasks, repeats)
    plain, floor = (min(times[f"{name} {block}"] for block in PLAIN_BLOCKS) for name in ("plain", "floor"))
    ideal = n_f * (t_h + t_f) / (t_h + n_f * t_f)
    speed = product_flops(model, n_h * (t_h + n_f * t_f), n_h * n_f) / times["oracle"]
    print(
        f"width {width:4d}, {layers} layers, T_h {t_h:3d}, T_f {t_f:3d}, {n_h} x {n_f}: "
        f"plain/oracle {plain / times['oracle']:5.2f} (ideal {ideal:5.2f}), "
        f"plain/library {plain / times['library']:5.2f}, "
        f"oracle/floor {times['oracle'] / floor:5.2f}, product "
        f"{speed * times['product'] / (2 * PRODUCT**3):4.2f}, max difference {gap:.1e}",
        flush=True,
    )


def main() -> None:
    """Print the ratios of every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=4)
    parser.add_argument("--futures", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for width, layers, t_h, t_f, share in CASES:
        n_h = max(1, int(options.histories * share))
        run_case(width, layers, t_h, t_f, n_h, options.futures, options.repeats)


if __name__ == "__main__":
    main()
