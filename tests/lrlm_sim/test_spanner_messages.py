"""What spanners say about wrong arguments and answers, in full."""

import numpy as np
import pytest

from lrlm_sim import spanner_search
from lrlm_sim.spanner_oracle import as_approximation
from lrlm_sim.spanner_search import (
    UncertifiableError,
)
from lrlm_sim.spanners import (
    barycentric_spanner,
    distributional_spanner,
    represent,
    robust_spanner,
    sample_compression_size,
    spanner_from_oracle,
)
from oracles.errors import NonFiniteError, ParameterError, ShapeError

EYE, FEW = np.eye(2), sample_compression_size(2, 0.5, 0.5)


WRONG = {
    "C is 1": (
        lambda: as_approximation(1),
        "C must exceed 1: the search for C = 1 (a set of largest volume) has no polynomial bound; "
        "ask for C = 1.01",
    ),
    "C below 1": (lambda: as_approximation(0.5), "C must be finite and in [1.0, inf], got 0.5"),
    "C is no number": (lambda: as_approximation("2"), "C must be a number, got '2'"),
    "tolerance": (
        lambda: barycentric_spanner(EYE, tolerance=1.0),
        "tolerance must be finite and in [1e-15, 0.001], got 1.0",
    ),
    "tolerance below": (
        lambda: barycentric_spanner(EYE, tolerance=1e-16),
        "tolerance must be finite and in [1e-15, 0.001], got 1e-16",
    ),
    "noise": (lambda: barycentric_spanner(EYE, noise=-1), "noise must be finite and in [0.0, inf], got -1"),
    "points": (lambda: barycentric_spanner(np.ones(3)), "X must have shape (n, d) = 2 axes, got (3,)"),
    "points are NaN": (
        lambda: barycentric_spanner([[np.nan]]),
        "X (n, d) must be finite, got NaN or infinity",
    ),
    "start": (
        lambda: barycentric_spanner(EYE, start="best"),
        "start must be 'pivoted', 'random' or row numbers, got 'best'",
    ),
    "oracle's tolerance": (
        lambda: spanner_from_oracle(lambda w: w, 2, tolerance=1.0),
        "tolerance must be finite and in [1e-15, 0.001], got 1.0",
    ),
    "oracle's tolerance below": (
        lambda: spanner_from_oracle(lambda w: w, 2, tolerance=1e-16),
        "tolerance must be finite and in [1e-15, 0.001], got 1e-16",
    ),
    "dimension": (lambda: spanner_from_oracle(lambda w: w, 0), "dimension must be at least 1, got 0"),
    "answer's length": (
        lambda: spanner_from_oracle(lambda w: np.ones(3), 2),
        "maximise(w) must have shape (dimension,) = (2,), got (3,)",
    ),
    "answer's axes": (
        lambda: spanner_from_oracle(lambda w: np.ones((1, 2)), 2),
        "maximise(w) must have shape (dimension,) = 1 axes, got (1, 2)",
    ),
    "answer is NaN": (
        lambda: spanner_from_oracle(lambda w: [np.nan, 1], 2),
        "maximise(w) (dimension,) must be finite, got NaN or infinity",
    ),
    "points of represent": (
        lambda: represent(np.ones(2), EYE),
        "spanner must have shape (r, d) = 2 axes, got (2,)",
    ),
    "rows of represent": (
        lambda: represent(EYE, np.ones(2)),
        "rows must have shape (n, d) = 2 axes, got (2,)",
    ),
    "width of represent": (
        lambda: represent(EYE, np.ones((4, 3))),
        "rows must have shape (n, d) = (n, 2), got (4, 3)",
    ),
    "dependent": (
        lambda: represent([[1.0, 2.0], [2.0, 4.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "zero": (
        lambda: represent([[1.0, 2.0], [0.0, 0.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "too many": (
        lambda: represent([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]], EYE),
        "the points of a spanner must be independent and not zero: drop the others",
    ),
    "gamma": (lambda: robust_spanner(EYE, -0.5), "gamma must be finite and in [0.0, inf], got -0.5"),
    "robust rows": (lambda: robust_spanner(np.ones(2), 0.1), "X must have shape (n, m) = 2 axes, got (2,)"),
    "robust start": (
        lambda: robust_spanner(EYE, 0.1, start="best"),
        "start must be 'pivoted', 'random' or row numbers, got 'best'",
    ),
    "rows wanted": (lambda: sample_compression_size(0, 0.1, 0.1), "dimension must be at least 1, got 0"),
    "eta": (lambda: sample_compression_size(2, 0, 0.1), "eta must lie strictly between 0 and 1, got 0.0"),
    "eta above": (
        lambda: sample_compression_size(2, 1.5, 0.1),
        "eta must be finite and in [0.0, 1.0], got 1.5",
    ),
    "delta": (lambda: sample_compression_size(2, 0.1, 1), "delta must lie strictly between 0 and 1, got 1.0"),
    "delta below": (
        lambda: sample_compression_size(2, 0.1, -1),
        "delta must be finite and in [0.0, 1.0], got -1",
    ),
    "rows drawn": (
        lambda: distributional_spanner(lambda n, rng: np.ones((3, 2)), 2, 0.5, 0.5),
        f"draw(n, rng) must have shape (n, dimension) = ({FEW}, 2), got (3, 2)",
    ),
    "rows drawn are flat": (
        lambda: distributional_spanner(lambda n, rng: np.ones(2 * n), 2, 0.5, 0.5),
        f"draw(n, rng) must have shape (n, dimension) = 2 axes, got ({2 * FEW},)",
    ),
    "rows drawn are NaN": (
        lambda: distributional_spanner(lambda n, rng: np.full((n, 2), np.nan), 2, 0.5, 0.5),
        "draw(n, rng) (n, dimension) must be finite, got NaN or infinity",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_messages_name_the_argument_what_was_expected_and_what_came(call, message):
    with pytest.raises((ParameterError, ShapeError, NonFiniteError)) as error:
        call()
    assert str(error.value) == message


def test_rows_that_no_double_certifies_are_refused_with_remedies(monkeypatch):
    monkeypatch.setattr(spanner_search, "_exchange", _refuse)
    with pytest.raises(ParameterError) as error:
        barycentric_spanner(EYE)
    assert str(error.value) == (
        "X has rows of such different sizes, or so nearly dependent, that double precision cannot "
        "certify a spanner: rescale the rows, raise tolerance or noise, or use robust_spanner"
    )


def _refuse(*_):
    raise UncertifiableError
