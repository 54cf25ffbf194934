"""The command `sample`: pictures or videos of prompts."""

import argparse
from pathlib import Path

from neighbor_grpo.commands.options import Commands, given_prompts, loaded, model_options, place, random_seed, sampling
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.prompts.prompt import Prompt, is_text


def add(commands: Commands) -> None:
    """Add the command."""
    sample = commands.add_parser("sample", help="sample pictures or videos")
    model_options(sample)
    sample.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    sample.add_argument("--image", type=place, metavar="FILE", help="first frame of the videos of --prompt")
    sample.add_argument("--seed", type=random_seed, action="append", help="a seed; may be repeated (default 0)")
    sample.add_argument("--out", type=place, default=Path("samples"), help="output directory (default %(default)s)")
    sample.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample every prompt with every seed, print the files, and list them in pictures.json."""
    if arguments.image and not arguments.image.is_file():
        raise UserError(f"--image {arguments.image}: no such file: give the path of a picture")
    if not arguments.prompt and not arguments.prompts:
        raise UserError("nothing to sample: give --prompt TEXT or --prompts FILE")
    prompts = [*_given(arguments), *given_prompts(arguments)]
    import torch

    from neighbor_grpo.files import atomic
    from neighbor_grpo.files.images import save_png
    from neighbor_grpo.files.listing import LISTING, Picture, category, write_listing
    from neighbor_grpo.models.sampling import sample
    from neighbor_grpo.models.text_cache import check_prompts, encode_prompts

    model = loaded(arguments).model
    check_prompts(model, prompts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    atomic.remove_dead(arguments.out)
    (arguments.out / LISTING).unlink(missing_ok=True)  # the pictures that it lists are about to be replaced
    listed = []
    seeds = arguments.seed or [0]
    noise = torch.stack([model.noise(1, torch.Generator().manual_seed(seed))[0] for seed in seeds])
    for n, prompt in enumerate(prompts):
        images = sample(model, encode_prompts(model, [prompt]), noise[None], *sampling(arguments))
        for seed, image in zip(seeds, images[0], strict=True):
            file = arguments.out / f"{n:04d}-seed{seed}.png"
            with atomic.writing(file, durable=False) as aside:
                save_png(image, aside)
            listed.append(Picture(prompt.text, n, seed, file.name, category(prompt.metadata)))
            say(f"{file} {prompt.text}")
    write_listing(arguments.out, listed)


def _given(arguments: argparse.Namespace) -> list[Prompt]:
    if broken := next((text for text in arguments.prompt or [] if not is_text(text)), None):
        raise UserError(f"--prompt {shown(broken)} is not UTF-8: write it in a terminal that is, or in a file for --prompts")
    start = {"image": str(arguments.image)} if arguments.image else {}
    return [Prompt(text, start) for text in arguments.prompt or []]
