"""Train the small Llama-type language model that ships with the project.

The text is the running Python's own standard library source, so the study needs no download:
a byte-level BPE tokenizer and a causal language model are trained on it from scratch, files
are split into training and held-out by a hash of their relative path, and losses are reported
at geometrically spaced checkpoints, step 0 included.
The defaults (one thread) make the shipped model; `--steps 20 --out A --checkpoints B` is a trial.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
BOS = "<|bos|>"
PROMPTS = ("", "def", "class", "import os\n")  # a space belongs to the token after it
# Left out: third-party code, test suites, character tables, help texts, generated build data.
SKIPPED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from package versions and the machine."""

    seed: int = 20240611
    heldout_fraction: float = 0.06
    vocab_size: int = 1024
    context: int = 256
    hidden_size: int = 160
    layers: int = 4
    heads: int = 5
    intermediate_size: int = 432
    initializer_range: float = 0.02
    steps: int = 6561
    batch: int = 6
    learning_rate: float = 2.5e-3
    final_rate_ratio: float = 0.05
    warmup: int = 200
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    threads: int = 1


@dataclass(frozen=True)
class Split:
    """Files of one side of the split: relative paths and their texts, in sorted order."""

    paths: tuple[str, ...]
    texts: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Count files and bytes, and give a digest that changes with any path or text."""
        digest = hashlib.sha256()
        for path, text in zip(self.paths, self.texts, strict=True):
            digest.update(f"{path}\0{text}\0".encode())
        size = sum(len(text.encode()) for text in self.texts)
        return {"files": len(self.paths), "bytes": size, "sha256": digest.hexdigest()}


def read_corpus(root: Path, heldout_fraction: float) -> tuple[Split, Split]:
    """Read the library's sources and split them by file into (training, held-out)."""
    sides: tuple[list[tuple[str, str]], ...] = ([], [])
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if SKIPPED & set(parts) or any(p.startswith(SKIPPED_PREFIXES) for p in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = "/".join(parts)
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        if text.strip():
            sides[draw < heldout_fraction].append((name, text))
    train, heldout = (Split(*map(tuple, zip(*side, strict=True))) for side in sides)
    return train, heldout


def train_tokenizer(texts: Sequence[str], cfg: Config) -> PreTrainedTokenizerFast:
    """Train a lossless byte-level BPE vocabulary whose encodings start with the BOS token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    vocabulary = {"vocab_size": cfg.vocab_size, "special_tokens": [BOS]}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False, **vocabulary)
    core.train_from_iterator(texts, trainer)
    special = [(BOS, core.token_to_id(BOS))]
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=special)
    options = {"model_max_length": cfg.context, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, **options)


def encode(tokenizer: PreTrainedTokenizerFast, split: Split) -> np.ndarray:
    """Join all files of one side into a single stream of token ids, without BOS."""
    batches = tokenizer.backend_tokenizer.encode_batch(list(split.texts), add_special_tokens=False)
    return np.concatenate([np.asarray(item.ids, dtype=np.int64) for item in batches])


def windows(stream: np.ndarray, starts: np.ndarray, cfg: Config, bos: int) -> torch.Tensor:
    """Cut windows of BOS and ``context`` tokens: inputs are all but the last, targets the rest."""
    body = stream[starts[:, None] + np.arange(cfg.context)]
    return torch.from_numpy(np.concatenate([np.full((len(starts), 1), bos), body], axis=1))


def training_batches(stream: np.ndarray, cfg: Config, bos: int) -> Iterator[torch.Tensor]:
    """Yield batches for ever: each pass tiles the stream from a random offset and shuffles."""
    rng = np.random.default_rng(cfg.seed)
    while True:
        first = int(rng.integers(cfg.context))
        starts = rng.permutation(np.arange(first, len(stream) - cfg.context + 1, cfg.context))
        for i in range(0, len(starts) - cfg.batch + 1, cfg.batch):
            yield windows(stream, starts[i : i + cfg.batch], cfg, bos)


def build_model(cfg: Config, bos: int) -> LlamaForCausalLM:
    """Make the untrained model; matrices are normal with deviation ``initializer_range``."""
    torch.manual_seed(cfg.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            max_position_embeddings=cfg.context,
            initializer_range=cfg.initializer_range,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=None,
        )
    )


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor, reduction: str) -> torch.Tensor:
    """Cross-entropy, in nats, of each window's tokens after BOS."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, float]:
    """Mean loss over the windows: nats per token and bits per byte of the text they hold."""
    nats = sum(float(loss_of(model, part, "sum").double()) for part in batch.split(16))
    tokens, size = batch[:, 1:].numel(), int(sizes[batch[:, 1:]].sum())
    per_token, per_byte = nats / tokens, nats / math.log(2) / size
    return {"nats_per_token": round(per_token, 5), "bits_per_byte": round(per_byte, 5)}


def rate_at(step: int, cfg: Config) -> float:
    """Learning rate of an update: linear warm-up, then cosine down to ``final_rate_ratio``."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    cosine = 0.5 + 0.5 * math.cos(math.pi * (step - cfg.warmup) / (cfg.steps - cfg.warmup))
    return cfg.learning_rate * (cfg.final_rate_ratio + (1 - cfg.final_rate_ratio) * cosine)


def checkpoint_steps(steps: int) -> list[int]:
    """Step 0, and six later steps that grow by a factor of three up to the last."""
    return sorted({0, *(round(steps / 3**k) for k in range(6))})


def make_optimizer(model: LlamaForCausalLM, cfg: Config) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on the norms' gains."""
    sides: tuple[list[torch.nn.Parameter], ...] = ([], [])
    for parameter in model.parameters():
        sides[parameter.ndim > 1].append(parameter)
    decays = (0.0, cfg.weight_decay)
    groups = [{"params": p, "weight_decay": d} for p, d in zip(sides, decays, strict=True)]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2))


@torch.no_grad()
def sample(model: LlamaForCausalLM, coder: PreTrainedTokenizerFast, prompt: str, seed: int) -> str:
    """Draw 160 tokens at temperature 0.8 from the whole vocabulary, after BOS and a prompt."""
    torch.manual_seed(seed)
    ids = coder(prompt, return_tensors="pt").input_ids.long()
    for _ in range(160):
        chances = torch.softmax(model(input_ids=ids).logits[:, -1] / 0.8, dim=-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
    return str(coder.decode(ids[0], skip_special_tokens=True))


def save_checkpoint(model: LlamaForCausalLM, folder: Path) -> None:
    """Store a float16 copy (finer than bfloat16 at these weights' size) with its config."""
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def save_final(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Store the float32 model and its tokenizer, under a class name old and new readers know."""
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def train(cfg: Config, out: Path, checkpoints: Path) -> dict[str, Any]:
    """Run the whole study and write its files; returns what ``training.json`` holds."""
    began = time.perf_counter()
    torch.set_num_threads(cfg.threads)
    splits = read_corpus(Path(sysconfig.get_path("stdlib")), cfg.heldout_fraction)
    tokenizer = train_tokenizer(splits[0].texts, cfg)
    streams = [encode(tokenizer, split) for split in splits]
    bos = tokenizer.get_vocab()[BOS]
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    token_bytes = torch.tensor([len(name) for name in names])  # one character stands for a byte
    tiles = [np.arange(0, len(s) - cfg.context + 1, cfg.context) for s in streams]
    tiles[0] = tiles[0][:: max(1, len(tiles[0]) // 256)]  # an even sample of the training text
    pairs = zip(("train", "heldout"), streams, tiles, strict=True)
    checks = {side: windows(stream, starts, cfg, bos) for side, stream, starts in pairs}
    model = build_model(cfg, bos)
    optimizer = make_optimizer(model, cfg)
    batches = training_batches(streams[0], cfg, bos)
    print(f"{model.num_parameters()} parameters, {[len(s) for s in streams]} tokens", flush=True)

    rows: list[dict[str, Any]] = []
    recent: list[float] = []
    for step in range(cfg.steps + 1):
        if step in checkpoint_steps(cfg.steps):
            losses = {side: evaluate(model, held, token_bytes) for side, held in checks.items()}
            rows.append({"step": step, "tokens_seen": step * cfg.batch * cfg.context} | losses)
            print(json.dumps(rows[-1]), flush=True)
            # Step 0 ships with the package beside the final model; the last step is the final model.
            if step < cfg.steps:
                name = out.with_name(f"{out.name}_step0") if step == 0 else checkpoints / f"step_{step:06d}"
                save_checkpoint(model, name)
        if step == cfg.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, cfg)
        loss = loss_of(model, next(batches), "mean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            mean, seconds = np.mean(recent[-50:]), time.perf_counter() - began
            print(f"step {step + 1} loss {mean:.4f} {seconds:.0f} s", flush=True)

    model.eval()
    save_final(model, tokenizer, out)
    sides = [split.facts() | {"tokens": len(s)} for split, s in zip(splits, streams, strict=True)]
    modules = (torch, transformers, tokenizers, np)
    report = {
        "config": asdict(cfg),
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in modules},
        "corpus": {"train": sides[0], "heldout": sides[1], "heldout_paths": splits[1].paths},
        "loss_windows": {side: len(held) for side, held in checks.items()},
        "checkpoint_dtype": "float16",
        "checkpoints": rows,
        "samples": [sample(model, tokenizer, p, cfg.seed + i) for i, p in enumerate(PROMPTS)],
        "wall_seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time()),
    }
    (checkpoints / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, train, and print the samples."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, folder in (("out", "oracles/bundled"), ("checkpoints", "studies/checkpoints")):
        parser.add_argument(f"--{name}", type=Path, default=ROOT / folder / "stdlib_llama")
    for name in ("steps", "threads", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    args = parser.parse_args(argv)
    cfg = Config(steps=args.steps, threads=args.threads, seed=args.seed)
    report = train(cfg, args.out, args.checkpoints)
    print("\n-----\n".join(report["samples"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
