"""The prompts that a configuration names."""

from neighbor_grpo.config.sections import Prompts
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.prompts.reading import Choice, read_prompts


def training_prompts(prompts: Prompts) -> list[Prompt]:
    """Read the prompts that are trained on."""
    return read_prompts(prompts.path, choice=Choice(prompts.key, prompts.split, prompts.metadata))


def evaluation_prompts(prompts: Prompts) -> list[Prompt]:
    """Read the prompts from which `evaluate.skip` and `evaluate.prompts` choose; held-out ones where a set has some."""
    if prompts.eval_path is None:
        return read_prompts(prompts.path, True, Choice(prompts.key, prompts.split, prompts.metadata))
    return read_prompts(prompts.eval_path, True, Choice(prompts.eval_key, prompts.eval_split, prompts.metadata))
