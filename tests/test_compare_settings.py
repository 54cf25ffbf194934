"""Settings of comparisons: budgets, mistakes, and the shipped files."""

import subprocess
import sys

import pytest
from comparisons import comparison

from neighbor_grpo.compare.settings import load_comparison, read_comparison
from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.planning.plan import affordable, plan


def test_every_run_gets_the_same_evaluations(tmp_path):
    _, entries = load_comparison(comparison(tmp_path, budget={"evaluations": 1000}))
    for entry in entries:
        cost = plan(entry.config).evaluations
        assert 1000 - cost < entry.config.iterations * cost <= 1000
    assert [entry.config.iterations for entry in entries] == [41, 37]  # 4·3 + 3·4 = 24 and 9 + 3·6 = 27 an iteration
    assert [entry.config.evaluate.every for entry in entries] == [14, 13]
    assert {entry.config.evaluate.num_steps for entry in entries} == {3}


def test_a_budget_of_evaluations_counts_the_iterations_it_pays_for(tmp_path):
    """A window's first places share less than its later ones: 19 iterations of the mean cost would be a third too many."""
    methods = [{"method": {"name": name}, "prompts": {"per_iteration": 8}} for name in ("mix_grpo", "mix_grpo_flash")]
    _, entries = load_comparison(comparison(tmp_path, methods=methods, budget={"evaluations": 50000}))
    for entry in entries:
        at = [entry.config.model_copy(update={"iterations": entry.config.iterations + more}) for more in (0, 1)]
        within, beyond = (plan(config).evaluations * config.iterations for config in at)
        assert within <= 50000 < beyond
    # the window stays at the first place, where four steps share a row each: 8·(1 + 12·24 + 3·4·(1 + 3·3)) = 3272
    assert entries[0].config.iterations == 15


def test_a_long_budget_uses_the_mean_cost(tmp_path):
    config = load_config(
        None, ["method={name: dance_grpo, group_size: 4, num_steps: 3, num_train_steps: 2, updates_per_rollout: 2}"]
    )
    cost = plan(config).evaluations
    assert affordable(config, 5000 * cost) == 5000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": [{}, {}]}, "two methods share the run name 'neighbor'"),
        ({"methods": [{"method": {"name": "nieghbor"}}]}, "'nieghbor': did you mean neighbor?"),
        ({"methods": [{"method": {"name": "mix_grpo", "window": 40}}]}, "window (40) is longer"),
        ({"methods": [{"config": "nowhere.yaml"}]}, "no configuration file"),
        ({"methods": [{"methd": {}}]}, "unknown key methd: did you mean method?"),
        ({"methods": []}, "methods: list should have at least 1 item"),
        ({"tune": {}}, "tune.lr is required"),
        ({"budget": {}}, "exactly one of iterations, evaluations, seconds"),
        ({"budget": {"iterations": 3, "seconds": 3}}, "exactly one of"),
        ({"budget": {"evaluations": 5}}, "less than one iteration of neighbor costs"),
        ({"budgt": {"iterations": 3}}, "unknown key budgt: did you mean budget?"),
        ({"tune": {"lr": [1e-4], "seed": 1}}, "tune.seed (1) is one of the reported seeds"),
        ({"tune": {"lr": [1e-4], "by": "reach"}}, "reach must be a number or {times: x}"),
        ({"tune": {"lr": [1e-4], "keys": {"evaluate": {"skipp": 2}}}}, "tune.keys: unknown key evaluate.skipp: did you mean"),
        ({"bounds": {"scenes_strickt": {"least": 0}}}, "'scenes_strickt' is not measured"),
        ({"bounds": {"scenes_strict": {}}}, "a bound needs one of least, most, fall, times"),
        ({"bounds": {"scenes_strict": {"lest": 0}}}, "unknown key bounds.scenes_strict.lest"),
        ({"reach": "neigbor"}, "reach: unknown run 'neigbor'"),
        ({"reach": ["dance", "neigbor"]}, "reach: unknown run 'neigbor': choose among neighbor, dance"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(tmp_path, more, message):
    with pytest.raises(UserError) as caught:
        load_comparison(comparison(tmp_path, **more))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_presets_lie_below_the_keys_of_a_comparison(tmp_path):
    """Of the base too: a row's preset must not undo the base's own model."""
    base = {"preset": "flux_dev", "model": {"path": "mine"}, "prompts": {"per_iteration": 4}}
    methods = [{"preset": "flux_dev/mix_grpo"}, {"run": "narrow", "preset": "flux_dev/mix_grpo", "method": {"window": 2}}]
    _, entries = load_comparison(comparison(tmp_path, methods=methods, base=base))
    assert [entry.name for entry in entries] == ["mix_grpo", "narrow"]
    assert [entry.config.method.window for entry in entries] == [14, 2]
    for config in (entry.config for entry in entries):
        assert (config.model.path, config.prompts.per_iteration, config.optimizer.lr) == ("mine", 4, 1e-4)


@pytest.mark.parametrize("name", ["scenes/compare", "flux_dev/compare"])
def test_the_shipped_comparisons_name_the_baselines_whose_reward_is_to_be_reached(name):
    comparison, entries = read_comparison(name)
    assert sorted(comparison.reach) == sorted(entry.name for entry in entries if entry.config.method.name != "neighbor")


def test_help_and_mistakes_do_not_load_planning():
    """Planning loads torch; this room does not on its own."""
    code = "import sys, neighbor_grpo.compare.settings, neighbor_grpo.run.files; print('neighbor_grpo.planning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
