"""`lrlm spectrum`: the paper's measurements of one model, streamed, resumable, with its noise floor.

Golowich, Liu, Shetty (arXiv:2510.24966): singular values of the extended logit matrix at n, n/2, n/4, …,
their power law, KL and misspecification against rank, and the spaces of histories of nonsense futures
and of another model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lrlm_sim.block_store import BlockStore
from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.runs import Run, open_run
from lrlm_sim.cli.sources import (
    Source,
    check_one_tokenizer,
    identity_of,
    memory_bytes,
    open_model,
    windows_of,
)
from lrlm_sim.cli.spectrum_report import Measured, plot_angles, plot_losses, plot_streams, print_tables
from lrlm_sim.corpus import histories_and_futures, histories_and_mixed_futures, nonsense
from lrlm_sim.logit_stream import KeptTokens, LogitStream
from lrlm_sim.matrices import extended_logits
from lrlm_sim.noise_floor import NoiseFloor, noise_floor
from lrlm_sim.spectra import fit_power_law, low_rank_kl, singular_values
from lrlm_sim.stream_spectrum import (
    RangeFit,
    SpaceAngles,
    StreamedSpectrum,
    default_ranks,
    fit_range,
    halvings,
    measure_stream,
    space_angles,
)
from oracles.base import Oracle
from oracles.checks import as_integer
from oracles.errors import FormatError, HorizonError, ParameterError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one logit matrix held in memory, with its fit and its rank-r losses."""

    sigma: np.ndarray
    span: tuple[int, int]
    fit: tuple[float, float, float]
    ranks: list[int]
    kl: np.ndarray
    bound: np.ndarray


def measure(
    oracle: Oracle,
    histories: np.ndarray,
    futures: np.ndarray,
    tokens: np.ndarray | None,
    span: tuple[int, int],
) -> Spectrum:
    """Extended logits of `oracle`, their singular values, α over `span` (1-based, inclusive), KL per rank."""
    logits = extended_logits(oracle, histories, futures, tokens)
    sigma = singular_values(logits)
    last = min(span[1], len(sigma))
    if span[0] >= last:
        raise ParameterError(
            f"the fit needs first < last ≤ {len(sigma)} singular values, got [{span[0]}, {last}]"
        )
    ranks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if r < len(sigma)]
    losses = low_rank_kl(logits, ranks)
    alpha, log_c, r2 = fit_power_law(sigma, span[0], last)
    return Spectrum(sigma, (span[0], last), (alpha, log_c, r2), ranks, losses.kl, losses.bound)


@dataclass(frozen=True)
class Options:
    """What is measured; see the command's own help.

    `first`, `last`: range of the fit; last = None is n/2, or where the noise floor ends it.
    """

    source: Source
    n: int
    lengths: tuple[int, int]
    tokens: KeptTokens
    mixed: bool = False
    nonsense: bool = False
    compare: str | None = None
    single_token: bool = False
    memory: str = "2GB"
    first: int = 5
    last: int | None = None
    dtype: str | None = None
    device: str | None = None


def run_spectrum(
    screen: Screen, oracle: str, options: Options, seed: int, out: Path | None, resume: Path | None = None
) -> int:
    """Measure, print, plot and store; status 0. A folder with blocks of the same run is gone on with."""
    _check(options)
    folder = _folder(out, resume)
    with screen.step("opening the model"):
        model = open_model(oracle, options.dtype, options.device)
        other = None
        if options.compare is not None:
            other = open_model(options.compare, options.dtype, options.device)
            check_one_tokenizer(model, other, (oracle, options.compare))
    _check_horizon(model, options.lengths)
    text = options.source.read(2 * options.n * sum(options.lengths), seed)
    key = {
        "model": identity_of(oracle, model),
        "text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "n": options.n,
        "lengths": list(options.lengths),
        "mixed": options.mixed,
        "tokens": options.tokens.key(model.vocab_size),
        "seed": seed,
    }
    settings = {"oracle": oracle, **asdict(options)}
    if folder is not None:  # another run's folder is refused before anything is written into it
        BlockStore(folder / "blocks", key)
    with open_run("spectrum", seed, folder, settings) as run:
        store = BlockStore(run.folder / "blocks", key)
        with screen.step("drawing histories and futures"):
            histories, futures = _strings(store, model, text, options, seed)
        del text
        streams = {"sensible": (model, oracle, futures, options.tokens)}
        if options.nonsense:
            streams["nonsense"] = (model, oracle, nonsense(futures, seed), options.tokens)
        if other is not None and options.compare is not None:
            streams["compared"] = (other, options.compare, futures, options.tokens)
        if options.single_token:
            streams["single token"] = (model, oracle, [np.empty(0, dtype=np.int64)], KeptTokens("all"))
        found: dict[str, Measured] = {}
        for name, (owner, spec, tails, tokens) in streams.items():
            part = replace(options, tokens=tokens)
            found[name] = _measure(screen, run, store, name, (owner, spec), histories, tails, part)
        _report(screen, run, oracle, found, options)
    return 0


def _check(options: Options) -> None:
    as_integer("n", options.n, 2)
    for name, length in zip(("history-length", "future-length"), options.lengths, strict=True):
        as_integer(name, length, 1)
    as_integer("first", options.first, 1)
    memory_bytes(options.memory)
    if options.last is not None and options.last <= options.first:
        raise ParameterError(f"the fit needs first < last, got [{options.first}, {options.last}]")


def _check_horizon(model: Oracle, lengths: tuple[int, int]) -> None:
    if model.horizon is not None and sum(lengths) >= model.horizon:
        raise HorizonError(
            f"history + future + 1 token = {sum(lengths) + 1} is past the horizon {model.horizon}: "
            "give smaller --history-length and --future-length"
        )
    limit = getattr(model, "max_context", None)
    if limit is not None and sum(lengths) + 1 > limit:
        raise HorizonError(
            f"BOS + history + future = {sum(lengths) + 1} tokens, the model reads at most {limit}: give "
            "smaller --history-length and --future-length"
        )


def _folder(out: Path | None, resume: Path | None) -> Path | None:
    """The run folder, which must hold blocks if it is to be resumed."""
    if resume is None:
        return out
    if out is not None and out != resume:
        raise ParameterError("--resume goes on in its own folder: leave --out out")
    if not (resume / "blocks" / "key.json").is_file():
        raise FormatError(f"{resume} holds no blocks to go on with: start it with --out {resume}")
    return resume


def _strings(
    store: BlockStore, model: Oracle, text: str | None, options: Options, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Histories (n, T_h) and futures; stored, since samples may differ by rounding."""
    histories, flat, ends = (store.get(name) for name in ("histories", "futures", "future_ends"))
    if histories is not None and flat is not None and ends is not None:
        return histories, np.split(flat, ends[:-1])
    draw = histories_and_mixed_futures if options.mixed else histories_and_futures
    windows = windows_of(model, text, sum(options.lengths), options.n, seed)
    histories, drawn = draw(windows, options.n, *options.lengths, seed)
    futures = [np.asarray(future, dtype=np.int64) for future in drawn]
    store.put("histories", histories)
    store.put("futures", np.concatenate(futures))
    store.put("future_ends", np.cumsum([len(future) for future in futures]))
    return histories, futures


def _measure(
    screen: Screen,
    run: Run,
    store: BlockStore,
    name: str,
    model: tuple[Oracle, str],
    histories: np.ndarray,
    futures: Sequence[np.ndarray],
    options: Options,
) -> Measured:
    """One stream: blocks, singular values, losses, noise; its singular values are written at once."""
    sizes = halvings(len(histories), len(futures)) if len(futures) > 1 else []
    stream = LogitStream(
        model[0],
        histories,
        futures,
        options.tokens,
        store.folder / name.replace(" ", "_"),
        identity_of(model[1], model[0]),
        memory_bytes(options.memory),
        sizes,
    )
    n, columns = len(histories), len(futures) * stream.tokens_per_cell
    with screen.progress(f"{name}: {n} × {len(futures)} cells", n * len(futures)) as advance:
        spectrum = measure_stream(stream, default_ranks(min(n, columns)), sizes, advance)
    scale = float(np.sqrt(np.square(spectrum.sigma).sum() / (n * columns)))
    with screen.step(f"{name}: rounding noise"):
        noise = noise_floor(stream, columns, spectrum.arithmetic, scale)
    for size, sigma in spectrum.sigmas.items():
        suffix = "" if sigma is spectrum.sigma else f"_{size}"
        np.save(run.folder / f"{_file(name)}{suffix}.npy", sigma, allow_pickle=False)
    fits = _fits(spectrum, noise, options)
    measured = Measured(spectrum, noise, fits, stream.form, stream.computed, stream.reused)
    run.record(**{name: measured.record()})
    return measured


def _file(name: str) -> str:
    return "singular_values" if name == "sensible" else f"singular_values_{name.replace(' ', '_')}"


def _fits(spectrum: StreamedSpectrum, noise: NoiseFloor, options: Options) -> list[RangeFit]:
    """The asked range, [1, n/4] and [first, n/4] of the whole matrix, [first, m/2] of its parts.

    Ranges that were not asked for end before the noise floor.
    """
    sigma, first = spectrum.sigma, options.first
    n, sink = len(sigma), noise.sinks(sigma)
    clear = n if sink is None else sink - 1
    asked = options.last or min(n // 2, clear)
    ranges = [
        (n, sigma, first, asked),
        (n, sigma, 1, min(n // 4, clear)),
        (n, sigma, first, min(n // 4, clear)),
    ]
    for size, part in list(spectrum.sigmas.items())[1:]:
        ranges.append((size, part, first, min(size // 2, clear)))
    distinct = {(size, low, high): part for size, part, low, high in reversed(ranges)}
    found = [fit_range(size, part, low, high) for (size, low, high), part in reversed(distinct.items())]
    return [fit for fit in found if fit is not None]


def _drop(sigma: np.ndarray, rank: int) -> float | None:
    """σ_rank / σ_(rank+1), None where there is none of them."""
    return float(sigma[rank - 1] / sigma[rank]) if 0 < rank < len(sigma) and sigma[rank] > 0 else None


def _report(screen: Screen, run: Run, oracle: str, found: dict[str, Measured], options: Options) -> None:
    base = found["sensible"]
    angles: dict[str, list[SpaceAngles]] = {}
    for name in ("nonsense", "compared"):
        if name in found:
            width = min(found[name].spectrum.basis.shape[1], base.spectrum.basis.shape[1])
            ranks = [r for r in (1, 2, 5, 10, 20, 50, 100, 200, 500) if r <= width]
            angles[name] = space_angles(base.spectrum.basis, found[name].spectrum.basis, ranks)
    run.record(principal_angles={name: [asdict(entry) for entry in rows] for name, rows in angles.items()})
    if "single token" in found:
        single = found["single token"]
        rank = single.noise.certain(single.spectrum.sigma)
        run.record(single_token_rank=rank, single_token_drop=_drop(single.spectrum.sigma, rank))
    if base.fits:
        fit, losses = base.fits[0], base.spectrum.losses
        run.record(alpha=fit.alpha, log_c=fit.log_c, r2=fit.r2, fitted_range=[fit.first, fit.last])
        run.record(ranks=losses.ranks, kl=losses.kl)
    else:
        screen.say("fewer than two singular values lie in the range above the noise floor: nothing is fitted")
    plot_streams(run.folder / "spectrum.png", oracle, found)
    plot_losses(run.folder / "kl.png", oracle, found)
    if angles:
        plot_angles(run.folder / "angles.png", angles)
    print_tables(screen, oracle, found, angles)
    screen.say(f"plots, singular values and manifest in {run.folder}; blocks in {run.folder / 'blocks'}")
    screen.finish(run.manifest)
