"""Which steps are bad, by hand."""

import json
import math

import pytest

from synchformer_jax.errors import UserError
from synchformer_jax.train import bad_steps


def test_the_limit_is_a_multiple_of_the_median_two_steps_back():
    norms = [[step, float(step)] for step in range(1, 31)]
    assert bad_steps.limit(norms, 32, 10.0) == 10 * 15.5  # of 1 to 30
    assert bad_steps.limit(norms, 31, 10.0) == 10 * 15.0  # of 1 to 29
    assert bad_steps.limit(norms, 21, 10.0) == math.inf  # 19 are too few
    assert bad_steps.limit(norms, 32, 0.0) == math.inf
    many = [[step, 1.0 if step <= 100 else 2.0] for step in range(1, 201)]
    assert bad_steps.limit(many, 202, 3.0) == 6.0  # the last hundred


def test_bad_steps_do_not_move_the_usual_and_survive_a_restart(tmp_path):
    watch = bad_steps.BadSteps(tmp_path, "skip", 5.0, 0)
    for step in range(1, 151):
        assert watch.check(step, {"loss": 1.0, "grad_norm": 1.0}, None) is None
    assert "It is skipped" in watch.check(151, {"loss": 1.0, "grad_norm": 5.1}, [4, 2])
    assert json.loads((tmp_path / "bad_step_00000151_0.json").read_text())["records"] == [4, 2]
    again = bad_steps.BadSteps(tmp_path, "skip", 5.0, 0)
    again.set_state(json.loads(json.dumps(watch.get_state())))
    assert again.limit(153) == watch.limit(153) == 5.0 and again.in_a_row == 1
    assert len(watch.norms) == bad_steps.WINDOW + bad_steps.DELAY


def test_too_many_in_a_row_end_the_run(tmp_path):
    watch = bad_steps.BadSteps(tmp_path, "skip", 0.0, 0)
    for step in range(1, bad_steps.IN_A_ROW):
        watch.check(step, {"loss": math.nan, "grad_norm": 1.0}, None)
    with pytest.raises(UserError, match="10th bad step in a row"):
        watch.check(bad_steps.IN_A_ROW, {"loss": math.nan, "grad_norm": 1.0}, None)
