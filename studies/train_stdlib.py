"""Train one of the small language models of the studies: ``python -m studies.train_stdlib MODEL``.

The text is the running Python's own standard library source, so the study needs no download: files are
split into training and held-out by a hash of their relative path, and losses are reported at geometrically
spaced checkpoints, step 0 included. `stdlib_llama`, the model that ships with the package, trains its
byte-level BPE tokenizer too; the others read that tokenizer, so that their logits can be compared.
The defaults (one thread) make the committed models; `--steps 20 --out A --checkpoints B` is a trial.
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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "oracles" / "bundled" / "stdlib_llama"
BOS = "<|bos|>"
PROMPTS = ("", "def", "class", "import os\n")  # a space belongs to the token after it
# Left out: third-party code, test suites, character tables, help texts, generated build data.
SKIPPED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from package versions and the machine.

    `kept` are the k whose checkpoint after steps/3^k updates is stored besides step 0 and the last.
    `heads` and `intermediate_size` are a Llama's, `state_size` and `expand` a Mamba's.
    """

    name: str = "stdlib_llama"
    family: str = "llama"
    seed: int = 20240611
    heldout_fraction: float = 0.06
    vocab_size: int = 1024
    context: int = 256
    hidden_size: int = 160
    layers: int = 4
    heads: int = 5
    intermediate_size: int = 432
    state_size: int = 16
    expand: int = 2
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
    kept: tuple[int, ...] = (1, 2, 3, 4, 5)


#: What the two small models share. They see the batches of the bundled one, in its order.
_SMALL: dict[str, Any] = {"hidden_size": 64, "learning_rate": 5e-3, "kept": (1, 2, 4)}
_NARROW = Config("stdlib_llama_narrow", heads=2, intermediate_size=176, **_SMALL)
_MAMBA = Config("stdlib_mamba", "mamba", state_size=8, **_SMALL)
#: The committed models.
CONFIGS = {config.name: config for config in (Config(), _NARROW, _MAMBA)}


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


def build_model(cfg: Config, bos: int) -> LlamaForCausalLM | MambaForCausalLM:
    """Make the untrained model; matrices are normal with deviation ``initializer_range``.

    Mamba's own parts (A, D, time steps, convolution, output projection) start as transformers starts them.
    """
    torch.manual_seed(cfg.seed)
    common: dict[str, Any] = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.layers,
        "initializer_range": cfg.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": None,
    }
    if cfg.family == "mamba":
        shape = {"state_size": cfg.state_size, "expand": cfg.expand, "pad_token_id": None}
        return MambaForCausalLM(MambaConfig(**common, **shape))
    return LlamaForCausalLM(
        LlamaConfig(
            **common,
            intermediate_size=cfg.intermediate_size,
            num_attention_heads=cfg.heads,
            max_position_embeddings=cfg.context,
        )
    )


def loss_of(model: torch.nn.Module, batch: torch.Tensor, reduction: str) -> torch.Tensor:
    """Cross-entropy, in nats, of each window's tokens after BOS."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction=reduction)


def count_losses(stream: np.ndarray, batch: torch.Tensor, vocab_size: int) -> dict[str, Any]:
    """Nats per token of unigram and bigram models of the training stream on the windows after BOS.

    p(b) = (n_b + 1) / (N + A) and p(b | a) = (n_ab + μ p(b)) / (n_a + μ), μ being the best of a few on
    these very windows, in the bigram's favour; nothing is known before a window's first token but p(b).
    """
    counts = np.bincount(stream, minlength=vocab_size)
    unigram = (counts + 1) / (len(stream) + vocab_size)
    pairs = np.bincount(stream[:-1] * vocab_size + stream[1:], minlength=vocab_size**2)
    pairs = pairs.reshape(vocab_size, vocab_size)
    tokens = batch[:, 1:].numpy()
    before, after = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    first, totals = np.log(unigram[tokens[:, 0]]).sum(), pairs.sum(axis=1)

    def bigram(mass: float) -> float:
        chances = (pairs[before, after] + mass * unigram[after]) / (totals[before] + mass)
        return float(-(np.log(chances).sum() + first) / tokens.size)

    mass = min((1.0, 3.0, 10.0, 30.0, 100.0, 300.0), key=bigram)
    return {
        "unigram": round(float(-np.log(unigram[tokens]).mean()), 5),
        "bigram": round(bigram(mass), 5),
        "bigram_mass": mass,
    }


@torch.no_grad()
def evaluate(model: torch.nn.Module, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, float]:
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


def checkpoint_steps(cfg: Config) -> list[int]:
    """Step 0, and later steps that grow by factors of three up to the last."""
    return sorted({0, *(round(cfg.steps / 3**k) for k in (0, *cfg.kept))})


def make_optimizer(model: torch.nn.Module, cfg: Config) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on the norms' gains or Mamba's decay rates."""
    sides: tuple[list[torch.nn.Parameter], ...] = ([], [])
    for name, parameter in model.named_parameters():
        sides[parameter.ndim > 1 and not name.endswith("A_log")].append(parameter)
    decays = (0.0, cfg.weight_decay)
    groups = [{"params": p, "weight_decay": d} for p, d in zip(sides, decays, strict=True)]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2))


@torch.no_grad()
def sample(model: torch.nn.Module, coder: PreTrainedTokenizerFast, prompt: str, seed: int) -> str:
    """Draw 160 tokens at temperature 0.8 from the whole vocabulary, after BOS and a prompt."""
    torch.manual_seed(seed)
    ids = coder(prompt, return_tensors="pt").input_ids.long()
    for _ in range(160):
        chances = torch.softmax(model(input_ids=ids, use_cache=False).logits[:, -1] / 0.8, dim=-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
    return str(coder.decode(ids[0], skip_special_tokens=True))


def save_checkpoint(model: torch.nn.Module, folder: Path) -> None:
    """Store a float16 copy (finer than bfloat16 at these weights' size) with its config."""
    half: Any = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Store the tokenizer beside a model, under a class name old and new readers know."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def save_step(
    model: Any, tokenizer: PreTrainedTokenizerFast, step: int, cfg: Config, out: Path, checkpoints: Path
) -> None:
    """Store what is kept of a step: the final model in `out`, earlier ones in float16 in `checkpoints`.

    The bundled model is float32, and its step 0 ships with the package beside it.
    """
    bundled = cfg.name == Config.name
    if step == cfg.steps:
        if bundled:
            model.save_pretrained(out)
            (out / "model.safetensors").chmod(0o644)
        else:
            save_checkpoint(model, out)
        save_tokenizer(tokenizer, out)
    elif step == 0 and bundled:
        save_checkpoint(model, out.with_name(f"{out.name}_step0"))
    else:
        save_checkpoint(model, checkpoints / f"step_{step:06d}")


@dataclass(frozen=True, eq=False)
class Data:
    """Token streams (training, held-out), windows for the losses, and the facts of the corpus."""

    tokenizer: PreTrainedTokenizerFast
    bos: int
    streams: tuple[np.ndarray, np.ndarray]
    checks: dict[str, torch.Tensor]
    token_bytes: torch.Tensor
    facts: dict[str, Any]

    @classmethod
    def read(cls, cfg: Config) -> Data:
        """Read the corpus and encode it; only the bundled model trains its tokenizer."""
        splits = read_corpus(Path(sysconfig.get_path("stdlib")), cfg.heldout_fraction)
        if cfg.name == Config.name:
            tokenizer = train_tokenizer(splits[0].texts, cfg)
        else:
            tokenizer = AutoTokenizer.from_pretrained(BUNDLED, model_max_length=cfg.context)
        train, heldout = (encode(tokenizer, split) for split in splits)
        bos = tokenizer.get_vocab()[BOS]
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        token_bytes = torch.tensor([len(name) for name in names])  # one character stands for a byte
        tiles = [np.arange(0, len(s) - cfg.context + 1, cfg.context) for s in (train, heldout)]
        tiles[0] = tiles[0][:: max(1, len(tiles[0]) // 256)]  # an even sample of the training text
        pairs = zip(("train", "heldout"), (train, heldout), tiles, strict=True)
        checks = {side: windows(stream, starts, cfg, bos) for side, stream, starts in pairs}
        sides = [s.facts() | {"tokens": len(t)} for s, t in zip(splits, (train, heldout), strict=True)]
        facts = {"train": sides[0], "heldout": sides[1], "heldout_paths": splits[1].paths}
        return cls(tokenizer, bos, (train, heldout), checks, token_bytes, facts)


def train(cfg: Config, out: Path, checkpoints: Path) -> dict[str, Any]:
    """Run the whole study and write its files; returns what ``training.json`` holds.

    ``training.json`` is written at every checkpoint, so that a run that ends early can be used.
    """
    began = time.perf_counter()
    torch.set_num_threads(cfg.threads)
    data = Data.read(cfg)
    model = build_model(cfg, data.bos)
    optimizer = make_optimizer(model, cfg)
    batches = training_batches(data.streams[0], cfg, data.bos)
    modules = (torch, transformers, tokenizers, np)
    report: dict[str, Any] = {
        "config": asdict(cfg),
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in modules},
        "corpus": data.facts,
        "loss_windows": {side: len(held) for side, held in data.checks.items()},
        "heldout_count_models": count_losses(data.streams[0], data.checks["heldout"], cfg.vocab_size),
        "checkpoint_dtype": "float16",
        "checkpoints": [],
        "training_loss_every_50_steps": [],
    }
    print(f"{model.num_parameters()} parameters, {[len(s) for s in data.streams]} tokens", flush=True)

    recent: list[float] = []
    for step in range(cfg.steps + 1):
        if step in checkpoint_steps(cfg):
            losses = {side: evaluate(model, held, data.token_bytes) for side, held in data.checks.items()}
            row = {"step": step, "tokens_seen": step * cfg.batch * cfg.context} | losses
            report["checkpoints"].append(row)
            print(json.dumps(row), flush=True)
            save_step(model, data.tokenizer, step, cfg, out, checkpoints)
            if step == cfg.steps:
                break
            write_report(report, checkpoints, began)
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
            report["training_loss_every_50_steps"].append(round(float(mean), 4))
            print(f"step {step + 1} loss {mean:.4f} {seconds:.0f} s", flush=True)

    model.eval()
    report["samples"] = [sample(model, data.tokenizer, p, cfg.seed + i) for i, p in enumerate(PROMPTS)]
    write_report(report, checkpoints, began)
    return report


def write_report(report: dict[str, Any], checkpoints: Path, began: float) -> None:
    """Write ``training.json`` with the time spent so far."""
    report["wall_seconds"] = round(time.perf_counter() - began)
    report["cpu_seconds"] = round(time.process_time())
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "training.json").write_text(json.dumps(report, indent=2) + "\n")


def fast_scan(cfg: Config) -> AbstractContextManager[None]:
    """The compiled scan for a Mamba, which needs numba; a Llama has none."""
    if cfg.family != "mamba":
        return nullcontext()
    from studies.mamba_scan import compiled_scan

    return compiled_scan()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, train, and print the samples."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--out", type=Path, help="folder of the final model")
    parser.add_argument("--checkpoints", type=Path, help="folder of the earlier ones and training.json")
    for name in ("steps", "threads", "seed"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args(argv)
    changes = {name: getattr(args, name) for name in ("steps", "threads", "seed") if getattr(args, name)}
    cfg = replace(CONFIGS[args.model], **changes)
    checkpoints = args.checkpoints or ROOT / "studies" / "checkpoints" / cfg.name
    final = BUNDLED if cfg.name == Config.name else checkpoints / f"step_{cfg.steps:06d}"
    with fast_scan(cfg):
        report = train(cfg, args.out or final, checkpoints)
    print("\n-----\n".join(report["samples"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
