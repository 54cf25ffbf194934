"""The command `probe`: choose sigma by the spread of the rewards."""

import argparse

from neighbor_grpo.commands.options import Commands, configuration, configuration_options, number
from neighbor_grpo.config import method_name, training_prompts
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.neighbor import Neighbor


def add(commands: Commands) -> None:
    """Add the command."""
    probe = commands.add_parser(
        "probe",
        help="choose method.sigma by the spread of the rewards, before training",
        description="Roll out prompts.per_iteration groups at several sigmas, from the same noise, and print how much the "
        "rewards differ within a group. The smallest sigma that keeps a share of the largest spread is chosen.",
    )
    configuration_options(probe)
    probe.add_argument(
        "--sigma", type=number(float, 0, 1, above=True), action="append", metavar="S", help="a sigma to try; may be repeated"
    )
    probe.add_argument(
        "--share",
        type=number(float, 0, 1, above=True),
        default=0.5,
        help="share of the largest spread to keep (default %(default)s)",
    )
    probe.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table of the spreads and the override that chooses sigma."""
    config = configuration(arguments)
    if not isinstance(config.method, Neighbor):
        raise UserError(f"{method_name(config.method)} has no sigma: the probe is for method.name=neighbor")
    from neighbor_grpo.models.devices import pick_device
    from neighbor_grpo.models.lora import make_trainable
    from neighbor_grpo.models.text_cache import TextCache, cache_directory
    from neighbor_grpo.rewards.set import load_rewards
    from neighbor_grpo.run.weights import load_base
    from neighbor_grpo.training.probe import SIGMAS, choose, probe, table

    sigmas = sorted(arguments.sigma or SIGMAS)
    prompts = training_prompts(config.prompts)
    rewards = load_rewards(list(config.reward.train), config.reward.scorers)
    cache = cache_directory(config.prompts.cache_dir)
    model = load_base(config, pick_device(config.device))
    if config.model.lora and config.model.lora.path:
        make_trainable(model, config.model.lora)
    texts = TextCache(model, cache, config.prompts.cache_gb)
    rows = probe(model, texts, prompts, rewards, config, sigmas)
    say(table(rows))
    print(f"method.sigma={choose(rows, arguments.share):g}")
