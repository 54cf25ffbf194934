"""The commands `scenes` and `words`, each with `pretrain` and `render`: the bundled models' worlds."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neighbor_grpo.commands.options import Commands, count, place, random_seed

if TYPE_CHECKING:
    import numpy as np

    Draw = Callable[[np.random.Generator], np.ndarray]


def add(commands: Commands) -> None:
    """Add the commands."""
    _add_distil(_add_world(commands, "scenes", "a red circle left of a blue square", (3500, 12000, 40000, 64), _scene))
    _add_world(commands, "words", 'the word "KATO" in red', (3000, 7000, 300_000, 512), _word)


def _add_world(
    commands: Commands, world: str, example: str, recipe: tuple[int, int, int, int], drawing: "Callable[[str], Draw]"
) -> Commands:
    vae_steps, steps, pictures, batch = recipe  # those of the weights in the package
    parts = commands.add_parser(world, help=f"make the bundled model {world}, or draw its pictures by rule").add_subparsers(
        required=True, metavar="COMMAND"
    )
    pretrain = parts.add_parser("pretrain", help="train the bundled model from random weights; goes on if it was interrupted")
    pretrain.add_argument("--out", type=place, required=True, help="output directory of the pipeline, written every minute")
    pretrain.add_argument("--vae-steps", type=count, default=vae_steps, help="optimizer steps of the VAE (default %(default)s)")
    pretrain.add_argument("--steps", type=count, default=steps, help="optimizer steps of flow matching (default %(default)s)")
    pretrain.add_argument("--pictures", type=count, default=pictures, help="training pictures (default %(default)s)")
    pretrain.add_argument(
        "--batch", type=count, default=batch, help="pictures of a step; the VAE takes a quarter (default %(default)s)"
    )
    pretrain.add_argument("--keep", action="store_true", help="keep the model of each 1000 steps, in OUT/step-N")
    pretrain.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    pretrain.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu", help="default %(default)s")
    pretrain.set_defaults(command=run_pretrain, world=world)
    render = parts.add_parser("render", help="draw pictures of prompts by rule, as the training pictures were drawn")
    render.add_argument("prompt", nargs="+", help=f"e.g. '{example}'")
    render.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    render.add_argument("--out", type=place, default=Path(world), help="output directory (default %(default)s)")
    render.set_defaults(command=run_render, drawing=drawing)
    return parts


def _add_distil(parts: Commands) -> None:
    distil = parts.add_parser("distil", help="distil the bundled model to four steps; the same command goes on after a stop")
    distil.add_argument("--out", type=place, required=True, help="output directory of the pipeline, written every round")
    distil.add_argument("--rounds", type=count, default=8, help="rounds, each with new noises (default %(default)s)")
    distil.add_argument("--steps", type=count, default=3200, help="optimizer steps of all rounds (default %(default)s)")
    distil.add_argument("--pictures", type=count, default=8192, help="noises of a round (default %(default)s)")
    distil.add_argument("--batch", type=count, default=256, help="pictures of an optimizer step (default %(default)s)")
    distil.add_argument("--seed", type=random_seed, default=0, help="default %(default)s")
    distil.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu", help="default %(default)s")
    distil.set_defaults(command=run_distil)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train a bundled model into a directory that is empty, or holds what is left to do."""
    from importlib import import_module

    from neighbor_grpo.worlds.pretrain import Settings, pretrain

    settings = Settings(arguments.vae_steps, arguments.steps, arguments.pictures, arguments.batch, arguments.seed)
    recipe = import_module(f"neighbor_grpo.worlds.{arguments.world}.pretrain").RECIPE
    pretrain(recipe, arguments.out, settings, arguments.device, arguments.keep)


def run_distil(arguments: argparse.Namespace) -> None:
    """Distil the bundled model into an empty directory, or resume a distillation that was stopped."""
    from neighbor_grpo.worlds import unfinished

    settings = {name: getattr(arguments, name) for name in ("rounds", "steps", "pictures", "batch", "seed")}
    state = unfinished.begin(arguments.out, settings)
    from neighbor_grpo.worlds.scenes.distil import Distillation

    work = Distillation(**settings, device=arguments.device)
    if "done" in state:
        work.load_state(state)
    while work.done < arguments.rounds:
        work.round()
        work.save(arguments.out)
        unfinished.save(arguments.out, work.state())
    unfinished.end(arguments.out)


def _scene(prompt: str) -> "Draw":
    from neighbor_grpo.worlds.scenes.render import render
    from neighbor_grpo.worlds.scenes.world import parse, sample_scene

    spec = parse(prompt)
    return lambda rng: render(sample_scene(spec, rng), rng)


def _word(prompt: str) -> "Draw":
    from neighbor_grpo.worlds.words.world import parse

    spec = parse(prompt)

    from neighbor_grpo.worlds.words.render import render

    return lambda rng: render(spec, rng)


def run_render(arguments: argparse.Namespace) -> None:
    """Draw every prompt and print the files."""
    drawn = [arguments.drawing(prompt) for prompt in arguments.prompt]

    import numpy as np
    import torch

    from neighbor_grpo.files.images import save_png

    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for n, (prompt, draw) in enumerate(zip(arguments.prompt, drawn, strict=True)):
        file = arguments.out / f"{n:04d}.png"
        save_png(torch.from_numpy(draw(rng)), file)
        print(file, prompt)
