"""neighbor-grpo probe"""

import argparse
from pathlib import Path

from neighbor_grpo.commands.options import configuration
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.neighbor import Neighbor


def add(commands) -> None:
    probe = commands.add_parser(
        "probe",
        help="choose sigma by the spread of the rewards, before training",
        description="Roll out groups of a configuration at several sigmas, from the same noise, and print how much the "
        "rewards differ within a group. Chosen is the smallest sigma that keeps a share of the largest spread.",
    )
    probe.add_argument("config", nargs="*", metavar="CONFIG | key=value", help="as for train; prompts.per_iteration groups")
    probe.add_argument("--sigma", type=float, action="append", metavar="S", help="a sigma in (0, 1]; may be repeated")
    probe.add_argument("--share", type=float, default=0.5, help="of the largest spread (default %(default)s)")
    probe.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.models.devices import pick_device
    from neighbor_grpo.models.text_cache import TextCache
    from neighbor_grpo.prompts.reading import read_prompts
    from neighbor_grpo.rewards.registry import check_scorers
    from neighbor_grpo.rewards.set import load_rewards
    from neighbor_grpo.run.weights import load_base
    from neighbor_grpo.training.probe import SIGMAS, choose, probe, table

    sigmas = sorted(arguments.sigma or SIGMAS)
    if not all(0 < sigma <= 1 for sigma in sigmas):
        raise UserError(f"--sigma lies in (0, 1], not {' '.join(f'{sigma:g}' for sigma in sigmas)}")
    if not 0 < arguments.share <= 1:
        raise UserError(f"--share lies in (0, 1], not {arguments.share:g}")
    config = configuration(arguments.config)
    if not isinstance(config.method, Neighbor):
        raise UserError(f"{config.method.name} has no sigma: the probe is for method.name=neighbor")
    prompts = read_prompts(config.prompts.path)
    check_scorers(config.reward.scorers, [*config.reward.train, *config.watched])
    rewards = load_rewards(list(config.reward.train), config.reward.scorers)
    model = load_base(config, pick_device(config.device))
    texts = TextCache(model, Path(config.prompts.cache_dir).expanduser(), config.prompts.cache_gb)
    rows = probe(model, texts, prompts, rewards, config, sigmas)
    print(table(rows))
    print(f"method.sigma={choose(rows, arguments.share):g}")
