"""neighbor-grpo scenes: the bundled model's world"""

import argparse
from pathlib import Path

from neighbor_grpo.errors import UserError


def add(commands) -> None:
    scenes = commands.add_parser("scenes", help="the bundled model's world").add_subparsers(required=True, metavar="COMMAND")
    pretrain = scenes.add_parser("pretrain", help="make the bundled model from nothing")
    pretrain.add_argument("--out", type=Path, required=True, help="directory of the pipeline")
    pretrain.add_argument("--vae-steps", type=int, default=3500, help="default %(default)s")
    pretrain.add_argument("--steps", type=int, default=12000, help="of flow matching (default %(default)s)")
    pretrain.add_argument("--pictures", type=int, default=40000, help="drawn for training (default %(default)s)")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--device", default="cpu")
    pretrain.set_defaults(command=run_pretrain)
    render = scenes.add_parser("render", help="draw a prompt by rule, as the training pictures are")
    render.add_argument("prompt", nargs="+", help="e.g. 'a red circle left of a blue square'")
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--out", type=Path, default=Path("scenes"), help="directory of the pictures (default %(default)s)")
    render.set_defaults(command=run_render)


def run_pretrain(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.scenes.pretrain import pretrain

    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"{arguments.out} is not empty: choose another --out")
    pretrain(arguments.out, arguments.vae_steps, arguments.steps, arguments.pictures, arguments.seed, arguments.device)


def run_render(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from neighbor_grpo.files.images import save_png
    from neighbor_grpo.scenes.render import render
    from neighbor_grpo.scenes.world import parse, sample_scene

    specs = [parse(prompt) for prompt in arguments.prompt]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for n, spec in enumerate(specs):
        file = arguments.out / f"{n:04d}.png"
        save_png(torch.from_numpy(render(sample_scene(spec, rng), rng)), file)
        print(file, spec.prompt)
