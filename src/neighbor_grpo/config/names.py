"""The check of all that a configuration names: model, prompt files, rewards, metrics and the measure that is the best."""

from collections.abc import Iterable
from importlib.util import find_spec

from neighbor_grpo.config.prompts import evaluation_prompts, training_prompts
from neighbor_grpo.config.schema import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.adapter_files import check_adapter
from neighbor_grpo.prompts.reading import exists
from neighbor_grpo.rewards.names import check_measures, check_rewards, check_scorers


def check_names(config: Config, prompts: bool = True) -> None:
    """Raise UserError for a prompt file, reward, metric or scorer that does not exist.

    No library and no weights are read.
    A run checks the same again as it loads them; this is what can be known at once.  `prompts`: also check the prompt files
    that a preset names, which are the user's to write.
    """
    trained, watched, scorers = config.reward.train, config.watched, config.reward.scorers
    check_rewards(trained, scorers)
    check_measures(watched, scorers)
    check_scorers(scorers, [*trained, *watched])
    for source in [config.model.lora and config.model.lora.path, *(lora.path for lora in config.model.base_loras)]:
        if source:
            check_adapter(source)
    check_trackers(config.trackers.use)
    best = config.evaluate.best
    if best and best.removeprefix("-") not in [*trained, *watched]:
        raise UserError(f"evaluate.best: {best!r} is not measured: choose among {', '.join([*trained, *watched])}")
    later = [] if prompts else to_be_written(config)
    if "prompts.path" not in later:
        training_prompts(config.prompts)
    if config.prompts.eval_path or not later:
        evaluation_prompts(config.prompts)


def check_trackers(names: Iterable[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:  # of a whole package: nothing is imported
            raise UserError(f"tracker {name} is not installed: pip install 'neighbor-grpo[{name}]', or leave it out")


def to_be_written(config: Config) -> list[str]:
    """Return the keys of prompt files that a preset names and that do not exist yet."""
    files = {"prompts.path": config.prompts.path, "prompts.eval_path": config.prompts.eval_path}
    return [
        one.key
        for one in config.differences()
        if one.key in files and one.origin.startswith("preset ") and not exists(str(files[one.key]))
    ]
