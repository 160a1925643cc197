"""What LinGen is compared with: paired continuations, standard errors, helpers chosen by a spanner."""

import numpy as np
import pytest

from lrlm_sim.lingen import LinGen, continuation_kl, mixed_futures
from lrlm_sim.lingen_baselines import (
    compare,
    of_histories,
    of_weights,
    random_helpers,
    spanner_helpers,
    without_bos,
)
from oracles import ISAN
from oracles.errors import ParameterError

TARGETS = [[3, 1, 2, 0, 1], [0, 0, 2, 2, 1], [1, 3, 3, 0, 0]]


@pytest.fixture(name="teacher")
def _teacher():
    return ISAN.random(4, 4, 16, rng=0)


@pytest.fixture(name="helpers")
def _helpers():
    return np.unique(np.random.default_rng(1).integers(0, 4, (40, 5)), axis=0)


FUTURES = mixed_futures(np.random.default_rng(2).integers(0, 4, (60, 6)), 2)


def test_a_spanner_of_the_rank_is_enough_and_less_is_not(teacher, helpers):
    def worst(count):
        lingen = LinGen(helpers[spanner_helpers(teacher, helpers, FUTURES, count)], FUTURES)
        found = compare(
            teacher,
            TARGETS,
            {"v": of_weights(lingen, teacher, lingen.weights(teacher, TARGETS).weights)},
            4,
            6,
            0,
        )
        return found["v"].targets.max()

    assert worst(4) < 1e-6 < worst(3)
    with pytest.raises(ParameterError, match="span 4 directions"):
        spanner_helpers(teacher, helpers, FUTURES, 5)
    assert len(set(random_helpers(40, 7, 0))) == 7


def test_generators_see_the_same_continuations(teacher, helpers):
    short = [target[-2:] for target in TARGETS]
    lingen = LinGen(helpers, FUTURES)
    uniform = of_weights(lingen, teacher, np.full((3, len(helpers)), 1 / len(helpers)))
    generators = {
        "short": of_histories(teacher, short),
        "again": of_histories(teacher, short),
        "uniform": uniform,
    }
    done = []
    found = compare(teacher, TARGETS, generators, 5, 4, 7, done.append)
    assert sum(done) == 3
    np.testing.assert_array_equal(found["short"].per_step, found["again"].per_step)
    assert found["short"].difference(found["again"]) == (0.0, 0.0)
    each = [
        continuation_kl(teacher.condition(target), teacher.condition(target[-2:]), 5, 4, 7 + i).cumulative
        for i, target in enumerate(TARGETS)
    ]
    assert found["short"].cumulative == pytest.approx(np.mean(each))
    assert found["short"].cumulative_error == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))
    gap = found["uniform"].targets - found["short"].targets
    assert found["uniform"].difference(found["short"])[1] == pytest.approx(np.std(gap, ddof=1) / np.sqrt(3))
    assert found["short"].per_step.sum() == pytest.approx(found["short"].cumulative)


def test_a_model_without_bos_has_no_second_baseline(teacher):
    assert without_bos(teacher) is None
    pytest.importorskip("torch")
    from oracles.transformer import TransformerOracle
    from tests.oracles.tiny_transformers import tiny_model

    model = TransformerOracle(tiny_model("llama"))
    bare = without_bos(model)
    assert (model.bos_token_id, bare.bos_token_id) == (1, None)
    np.testing.assert_allclose(bare.next_log_probs([[1, 4, 5]]), model.next_log_probs([[4, 5]]), atol=1e-5)
    assert np.abs(bare.next_log_probs([[4, 5]]) - model.next_log_probs([[4, 5]])).max() > 1e-3
    assert without_bos(TransformerOracle(tiny_model("llama-without-bos"))) is None
