"""The names that are known without a library are those of the registries."""

from neighbor_grpo.commands.rewards import CONVERTED
from neighbor_grpo.evaluate import metrics
from neighbor_grpo.rewards import names, registry


def test_they_are_the_registries():
    assert tuple(registry.REWARDS) == names.REWARDS
    assert tuple(metrics.METRICS) == names.METRICS
    assert set(CONVERTED) <= set(names.REWARDS)
