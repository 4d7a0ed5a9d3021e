"""Predictions in bfloat16 are those in float32."""

import pytest

from benchmarks import precision


def check(found, inputs):
    assert found["inputs"] == found["same_class"] == inputs
    assert found["classes_predicted"] >= 18  # the model decides by what it is given
    assert found["difference_mean"] < 0.1 * found["logits_std"]
    assert 0 < found["difference_max"] < 0.5 * found["margin_median"]


def test_same_class_in_both_types():
    check(precision.fitted_head("Ti", 60, batch=60), 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_same_class_on_200_inputs_at_full_size():
    check(precision.fitted_head("B", 200), 200)
