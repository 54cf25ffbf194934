"""neighbor-grpo sample"""

import argparse
from pathlib import Path

from neighbor_grpo.commands.options import loaded, model_options
from neighbor_grpo.errors import UserError


def add(commands) -> None:
    sample = commands.add_parser("sample", help="draw pictures or videos")
    model_options(sample)
    sample.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    sample.add_argument("--image", type=Path, metavar="FILE", help="the picture that a video of --prompt starts from")
    sample.add_argument("--seed", type=int, action="append", help="a seed; may be repeated (default 0)")
    sample.add_argument("--out", type=Path, default=Path("samples"), help="directory of the pictures (default %(default)s)")
    sample.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from neighbor_grpo.files.images import save_png
    from neighbor_grpo.models.sampling import sample
    from neighbor_grpo.models.text_cache import encode_prompts
    from neighbor_grpo.prompts.reading import Prompt, read_prompts

    start = {"image": str(arguments.image)} if arguments.image else {}
    prompts = [Prompt(text, start) for text in arguments.prompt or []]
    if arguments.prompts:
        prompts += read_prompts(arguments.prompts, held_out=True)
    if arguments.image and not arguments.image.is_file():
        raise UserError(f"--image {arguments.image}: there is no such file")
    if not prompts:
        raise UserError("nothing to draw: give --prompt TEXT or --prompts FILE")
    model = loaded(arguments).model
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seed or [0]
    noise = torch.stack([model.noise(1, torch.Generator().manual_seed(seed))[0] for seed in seeds])
    for n, prompt in enumerate(prompts):
        images = sample(model, encode_prompts(model, [prompt]), noise[None], arguments.steps, arguments.solver)
        for seed, image in zip(seeds, images[0], strict=True):
            file = arguments.out / f"{n:04d}-seed{seed}.png"
            save_png(image, file)
            print(file, prompt.text)
