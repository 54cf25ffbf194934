"""The doctor's comparison with the pipeline's own call, for every family."""

import pytest
from test_contract import FAMILIES, cases  # noqa: F401

from neighbor_grpo.training.doctor.calls import sampling
from neighbor_grpo.training.doctor.texts import UNKNOWN, encoder_findings


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_to_the_pipeline_and_encoders_hear(name, cases):  # noqa: F811
    case = cases[name]
    model = case.load()
    found = sampling(model, case.prompts[:2])
    assert found.verdict == "ok" and found.value < 1e-4
    heard = encoder_findings(model, case.prompts)
    assert heard and all(one.verdict == "ok" or one.threshold == UNKNOWN for one in heard)  # small vocabularies lack words


def test_another_grid_of_times_is_found(cases):  # noqa: F811
    case = cases["flux"]
    model = case.load()
    model.times = lambda steps: [1 - n / steps for n in range(steps)] + [0.1]
    assert sampling(model, case.prompts[:2]).verdict == "error"
