"""The commands `scenes pretrain`, `distil` and `render`: the bundled model's world."""

import argparse
from pathlib import Path

from neighbor_grpo.commands.options import Commands, count, place, random_seed
from neighbor_grpo.errors import UserError


def add(commands: Commands) -> None:
    """Add the command."""
    scenes = commands.add_parser("scenes", help="make the bundled model, or draw its pictures by rule")
    parts = scenes.add_subparsers(required=True, metavar="COMMAND")
    pretrain = parts.add_parser("pretrain", help="train the bundled model from random weights")
    pretrain.add_argument("--out", type=place, required=True, help="output directory of the pipeline")
    pretrain.add_argument("--vae-steps", type=count, default=3500, help="optimizer steps of the VAE (default %(default)s)")
    pretrain.add_argument("--steps", type=count, default=12000, help="optimizer steps of flow matching (default %(default)s)")
    pretrain.add_argument("--pictures", type=count, default=40000, help="training pictures (default %(default)s)")
    pretrain.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    pretrain.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu", help="default %(default)s")
    pretrain.set_defaults(command=run_pretrain)
    distil = parts.add_parser("distil", help="distil the bundled model to four steps; the same command goes on after a stop")
    distil.add_argument("--out", type=place, required=True, help="output directory of the pipeline")
    distil.add_argument("--rounds", type=count, default=8, help="rounds, each with new noises (default %(default)s)")
    distil.add_argument("--steps", type=count, default=4000, help="optimizer steps of all rounds (default %(default)s)")
    distil.add_argument("--pictures", type=count, default=16384, help="noises of a round (default %(default)s)")
    distil.add_argument("--batch", type=count, default=256, help="pictures of an optimizer step (default %(default)s)")
    distil.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    distil.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu", help="default %(default)s")
    distil.set_defaults(command=run_distil)
    render = parts.add_parser("render", help="draw pictures of prompts by rule, as the training pictures were drawn")
    render.add_argument("prompt", nargs="+", help="e.g. 'a red circle left of a blue square'")
    render.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    render.add_argument("--out", type=place, default=Path("scenes"), help="output directory (default %(default)s)")
    render.set_defaults(command=run_render)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train the bundled model into an empty directory."""
    from neighbor_grpo.worlds.scenes.pretrain import pretrain

    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"{arguments.out} is not empty: choose another --out")
    pretrain(arguments.out, arguments.vae_steps, arguments.steps, arguments.pictures, arguments.seed, arguments.device)


def run_distil(arguments: argparse.Namespace) -> None:
    """Distil the bundled model into an empty directory, or go on with a distillation that was stopped."""
    unfinished = arguments.out / "unfinished.pt"
    begun = unfinished.is_file()
    if not begun and arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"{arguments.out} is not empty: choose another --out")
    import torch

    settings = {name: getattr(arguments, name) for name in ("rounds", "steps", "pictures", "batch", "seed")}
    state = torch.load(unfinished, map_location=arguments.device, weights_only=True) if begun else None
    if state and state["settings"] != settings:
        given = " ".join(f"--{name} {value}" for name, value in state["settings"].items())
        raise UserError(f"{arguments.out} was begun with {given}: give the same, or choose another --out")
    from neighbor_grpo.files import atomic
    from neighbor_grpo.worlds.scenes.distil import Distillation

    work = Distillation(**settings, device=arguments.device)
    if state:
        work.load_state(state)
    arguments.out.mkdir(parents=True, exist_ok=True)
    while work.done < arguments.rounds:
        work.round()
        with atomic.writing(unfinished) as aside:
            torch.save(work.state(), aside)
    work.save(arguments.out)
    unfinished.unlink()


def run_render(arguments: argparse.Namespace) -> None:
    """Draw every prompt and print the files."""
    import numpy as np
    import torch

    from neighbor_grpo.files.images import save_png
    from neighbor_grpo.worlds.scenes.render import render
    from neighbor_grpo.worlds.scenes.world import parse, sample_scene

    specs = [parse(prompt) for prompt in arguments.prompt]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for n, spec in enumerate(specs):
        file = arguments.out / f"{n:04d}.png"
        save_png(torch.from_numpy(render(sample_scene(spec, rng), rng)), file)
        print(file, spec.prompt)
