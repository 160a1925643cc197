"""How much reading every history once saves: ratios of `extended_log_probs` to plain batched passes.

    python -m tests.benchmarks.bench_extended_logits [--histories 4] [--futures 64] [--repeats 5]

For random Llama models it times, taking turns within one run,

- plain: the library's own forward pass on all h∘f, in blocks, at the fastest of several block sizes;
- oracle: `TransformerOracle.extended_log_probs` as it comes;
- floor: the plain pass on the futures alone, which no method that reads every future can beat.

`ideal` is the ratio of tokens read, n_h·n_f·(T_h + T_f) / (n_h·T_h + n_h·n_f·T_f).
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
CASES = [(64, 5, 32, 32, 1.0), (64, 5, 64, 16, 1.0), (64, 5, 256, 16, 0.5), (256, 5, 32, 32, 0.25)]
PLAIN_BLOCKS = (512, 1024, 2048, 4096)


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
    """Least processor time of each task; the tasks take turns, so that all see the same machine."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(repeats):
        for name, task in tasks.items():
            begin = time.process_time()
            task()
            best[name] = min(best[name], time.process_time() - begin)
    return best


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
    tasks: dict[str, Callable[[], object]] = {"oracle": lambda: oracle.extended_log_probs(histories, futures)}
    for block in PLAIN_BLOCKS:
        tasks[f"plain {block}"] = lambda block=block: plain_pass(model, whole, block)
        tasks[f"floor {block}"] = lambda block=block: plain_pass(model, alone, block)
    times = best_times(tasks, repeats)
    plain = min(times[f"plain {block}"] for block in PLAIN_BLOCKS)
    floor = min(times[f"floor {block}"] for block in PLAIN_BLOCKS)
    ideal = n_f * (t_h + t_f) / (t_h + n_f * t_f)
    print(
        f"width {width:4d}, {layers} layers, T_h {t_h:3d}, T_f {t_f:3d}, {n_h} x {n_f}: plain/oracle "
        f"{plain / times['oracle']:5.2f} (ideal {ideal:5.2f}), oracle/floor "
        f"{times['oracle'] / floor:5.2f}, max difference {gap:.1e}"
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
