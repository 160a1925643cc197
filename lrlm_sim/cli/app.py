"""The `lrlm` program: one function per command, errors as one line, exit status 0, 1 or 2.

0: done; 1: the command failed, or what was learned is not certified; 2: bad usage or bad input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrlm_sim.cli.certify import run_certify
from lrlm_sim.cli.console import Screen
from lrlm_sim.cli.demo import run_demo
from lrlm_sim.cli.doctor import run_doctor
from lrlm_sim.cli.learn import run_learn
from lrlm_sim.cli.lingen import Options as LinGenOptions
from lrlm_sim.cli.lingen import run_lingen
from lrlm_sim.cli.sources import Source
from lrlm_sim.cli.spectrum import Options as SpectrumOptions
from lrlm_sim.cli.spectrum import run_spectrum
from lrlm_sim.cli.study import run_list, run_report, run_study
from lrlm_sim.cli.verify import run_verify
from lrlm_sim.logit_stream import KeptTokens
from oracles.errors import (
    FormatError,
    HorizonError,
    LrlmError,
    MissingDependencyError,
    ParameterError,
    SpecError,
    TokenError,
    TooLargeError,
)

_BAD_USAGE = (
    SpecError,
    ParameterError,
    FormatError,
    HorizonError,
    TokenError,
    MissingDependencyError,
    TooLargeError,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Learn language models from queries, measure them, and certify the result.",
)

studies = typer.Typer(help="Studies: questions asked of the library.", no_args_is_help=True)
app.add_typer(studies, name="study")

Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path | None, typer.Option(help="Run folder (default: runs/COMMAND-TIME).")]
OracleSpec = Annotated[
    str, typer.Argument(help="hmm:n_states=4,… | isan:… | parity:… | hf:PATH | PATH.safetensors | bundled")
]
Texts = Annotated[list[Path] | None, typer.Option(help="Text or source files, or folders of them.")]
Dataset = Annotated[str | None, typer.Option(help="Hugging Face dataset, OWNER/NAME or OWNER/NAME:CONFIG.")]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64 (hf: models).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, … (hf: models).")]
Confidence = Annotated[float, typer.Option(help="Confidence of intervals.", min=0.5, max=1 - 1e-9)]


@app.command()
def demo(seed: Seed = 0, as_json: AsJson = False, out: Out = None) -> None:
    """Learn two teachers from queries, certify them, and measure the bundled trained transformer."""
    raise typer.Exit(run_demo(Screen(as_json), seed, out))


@app.command()
def learn(
    oracle: OracleSpec,
    learner: Annotated[str, typer.Option(help="Learner and its parameters, e.g. isan:rank=4.")] = "isan",
    epsilon: Annotated[float, typer.Option(help="Certified TV wanted.", min=0, max=1)] = 0.1,
    noise: Annotated[float, typer.Option(help="Bounded noise added to each answer.", min=0)] = 0.0,
    budget: Annotated[int | None, typer.Option(help="Most calls allowed.", min=1)] = None,
    samples: Annotated[int, typer.Option(help="Teacher strings for the certificate.", min=2)] = 2000,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Learn a teacher from queries, certify the total variation, and save the model."""
    raise typer.Exit(
        run_learn(Screen(as_json), oracle, learner, epsilon, noise, budget, samples, confidence, seed, out)
    )


@app.command()
def certify(
    oracle: OracleSpec,
    model: Annotated[str, typer.Argument(help="The learned model: PATH.safetensors or any oracle.")],
    epsilon: Annotated[float, typer.Option(help="Certified TV wanted.", min=0, max=1)] = 0.1,
    samples: Annotated[int, typer.Option(help="Teacher strings.", min=2)] = 2000,
    confidence: Confidence = 0.99,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Total-variation interval of a model from teacher queries only."""
    raise typer.Exit(run_certify(Screen(as_json), oracle, model, epsilon, samples, confidence, seed, out))


@app.command()
def spectrum(
    oracle: OracleSpec,
    text: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[
        bool, typer.Option(help="Strings drawn from the model (the default without text).")
    ] = False,
    n: Annotated[int, typer.Option(help="Histories and futures.", min=2)] = 200,
    history_length: Annotated[int, typer.Option(help="Tokens per history.", min=1)] = 16,
    future_length: Annotated[int, typer.Option(help="Tokens per future.", min=1)] = 16,
    mixed: Annotated[bool, typer.Option(help="Futures of random lengths 1..future-length.")] = False,
    nonsense: Annotated[bool, typer.Option(help="Also futures with their tokens permuted.")] = False,
    tokens: Annotated[str, typer.Option(help="Columns per future: likely, random or all tokens.")] = "likely",
    k: Annotated[int, typer.Option(help="Number of likely or random tokens.", min=1)] = 50,
    compare: Annotated[str | None, typer.Option(help="Another model with the same tokenizer.")] = None,
    single_token: Annotated[bool, typer.Option(help="Also the single-token matrix.")] = False,
    memory: Annotated[str, typer.Option(help="Memory limit beside the model, such as 2GB.")] = "2GB",
    first: Annotated[int, typer.Option(help="First index of the power-law fit.", min=1)] = 5,
    last: Annotated[
        int | None, typer.Option(help="Last index of the fit (default n/2, or the noise floor).", min=2)
    ] = None,
    dtype: Precision = None,
    device: Device = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a stopped run in this folder (same options as it had).")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Singular values of the extended logit matrix, their power law, KL against rank, history spaces."""
    if samples and (text or dataset):
        raise ParameterError("--samples draws strings from the model: leave --text and --dataset out")
    options = SpectrumOptions(
        Source(tuple(text or ()), dataset),
        n,
        (history_length, future_length),
        KeptTokens(tokens, k, seed),  # type: ignore[arg-type]
        mixed,
        nonsense,
        compare,
        single_token,
        memory,
        first,
        last,
        dtype,
        device,
    )
    raise typer.Exit(run_spectrum(Screen(as_json), oracle, options, seed, out, resume))


@app.command()
def lingen(
    oracle: OracleSpec,
    text: Texts = None,
    dataset: Dataset = None,
    target_text: Annotated[
        list[Path] | None, typer.Option(help="Other text for the targets: out of distribution.")
    ] = None,
    helpers: Annotated[int, typer.Option(help="Helper prompts.", min=1)] = 100,
    futures: Annotated[int, typer.Option(help="Futures the weights are fitted on.", min=1)] = 100,
    targets: Annotated[int, typer.Option(help="Prompts to continue without asking about them.", min=1)] = 5,
    history_length: Annotated[int, typer.Option(help="Tokens per prompt.", min=1)] = 16,
    future_length: Annotated[int, typer.Option(help="Longest future.", min=1)] = 15,
    steps: Annotated[int, typer.Option(help="Tokens generated.", min=1)] = 15,
    repeats: Annotated[int, typer.Option(help="Continuations per target.", min=1)] = 4,
    short: Annotated[int, typer.Option(help="Tokens of the short-history baseline.", min=1)] = 5,
    spanner: Annotated[
        int | None, typer.Option(help="Also so many helpers, by a spanner and at random.", min=1)
    ] = None,
    nonsense: Annotated[bool, typer.Option(help="Also helpers and futures of permuted tokens.")] = False,
    transfer_from: Annotated[
        str | None, typer.Option(help="Also weights fitted on this model (same tokenizer).")
    ] = None,
    earlier: Annotated[str | None, typer.Option(help="Also this checkpoint in place of the model.")] = None,
    dtype: Precision = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Continue prompts by linear combinations of other prompts' logits, with KL to the truth."""
    options = LinGenOptions(
        Source(tuple(text or ()), dataset),
        Source(tuple(target_text or ())),
        helpers,
        futures,
        targets,
        (history_length, future_length),
        steps,
        repeats,
        min(short, history_length),
        spanner,
        nonsense,
        transfer_from,
        earlier,
        dtype,
        device,
    )
    raise typer.Exit(run_lingen(Screen(as_json), oracle, options, seed, out))


@app.command()
def verify(
    theorems: Annotated[list[str] | None, typer.Argument(help="Names of theorems (default: all).")] = None,
    budget: Annotated[str, typer.Option(help="small, medium or large.")] = "small",
    mutants: Annotated[bool, typer.Option("--mutants", help="Try broken versions: all must fail.")] = False,
    instance: Annotated[str | None, typer.Option(help="Repeat one instance: name=integer,….")] = None,
    jobs: Annotated[int | None, typer.Option(help="Theorems side by side (default: CPUs).", min=1)] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Try the theorems: instances, bound, worst measured, verdict; a page with a figure for each."""
    raise typer.Exit(run_verify(Screen(as_json), theorems or [], budget, mutants, instance, jobs, seed, out))


@app.command()
def doctor(seed: Seed = 0, as_json: AsJson = False) -> None:
    """What is installed, what works here, and what to install for the rest."""
    raise typer.Exit(run_doctor(Screen(as_json), seed))


@studies.command("list")
def study_list(as_json: AsJson = False) -> None:
    """Names and questions of all studies."""
    raise typer.Exit(run_list(Screen(as_json)))


@studies.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def study_run(context: typer.Context, name: Annotated[str, typer.Argument(help="Name of a study.")]) -> None:
    """Run a study; its own options follow its name (--quick, --out DIR, …)."""
    raise typer.Exit(run_study(name, context.args))


@studies.command("report")
def study_report(
    name: Annotated[str, typer.Argument(help="Name of a study.")], as_json: AsJson = False
) -> None:
    """Print the committed tables of a study."""
    raise typer.Exit(run_report(Screen(as_json), name))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``lrlm``: runs a command and turns expected errors into one line on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the commands show their own progress
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep: kind to shared machines
    try:
        app(arguments)
    except _BAD_USAGE as error:
        _stop(str(error), 2)
    except LrlmError as error:
        _stop(str(error), 1)


def _stop(message: str, status: int) -> None:
    sys.stderr.write(f"lrlm: {' '.join(message.split())}\n")
    sys.exit(status)
