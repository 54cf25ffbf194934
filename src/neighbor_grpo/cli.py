"""The command line: train, compare, sample, evaluate, scenes.  A user's mistake is one line on stderr and exit code 2."""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from pydantic_core import PydanticUndefined

from neighbor_grpo.compare.settings import Comparison, load_comparison
from neighbor_grpo.config import Config, describe, load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.solvers import SOLVERS

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, by the commands


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        _quiet()
        return arguments.command(arguments) or 0
    except UserError as error:
        print(f"neighbor-grpo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neighbor-grpo: stopped", file=sys.stderr)
        return 130


def _quiet() -> None:
    """The libraries' own progress bars and hints go; what a run says is the run's to say."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neighbor-grpo", description="Align flow-matching models with rewards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="align a model with a reward", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Align a model with a reward. Without CONFIG: the bundled model on the bundled task.",
        epilog="keys:\n" + _keys() + "".join(
            f"\n\nkeys with method.name={name}:\n" + _keys(method, "method.")
            for name, method in METHODS.items() if name != "neighbor"
        ),
    )
    train.add_argument(
        "config", nargs="*", metavar="CONFIG | key=value", help="YAML files, each over the one before, then changes"
    )
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this directory")
    train.set_defaults(command=_train)

    compare = commands.add_parser(
        "compare", help="several methods and seeds side by side", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train every method of a comparison on every seed and set them side by side. What is finished is not "
        "run again,\nwhat was stopped goes on.", epilog="keys:\n" + _keys(Comparison),
    )
    compare.add_argument("config", metavar="CONFIG", help="a YAML file, for instance configs/scenes/compare.yaml")
    compare.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")
    compare.add_argument(
        "--part", default="1/1", metavar="K/N",
        help="only every N-th method from the K-th on, to share the work among N commands (default %(default)s)",
    )
    compare.set_defaults(command=_compare)

    sample = commands.add_parser("sample", help="draw pictures")
    _model_options(sample)
    sample.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    sample.add_argument("--seed", type=int, action="append", help="a seed; may be repeated (default 0)")
    sample.add_argument("--out", type=Path, default=Path("samples"), help="directory of the pictures (default %(default)s)")
    sample.set_defaults(command=_sample)

    evaluate = commands.add_parser("evaluate", help="measure a model or a run on a prompt file")
    _model_options(evaluate)
    evaluate.add_argument("--measure", action="append", metavar="NAME", help="reward or metric; may be repeated")
    evaluate.add_argument("--seeds", type=int, default=2, help="pictures of each prompt (default %(default)s)")
    evaluate.add_argument("--limit", type=int, help="only so many prompts, from the first on")
    evaluate.add_argument("--out", type=Path, help="JSON file of the numbers and every setting")
    evaluate.set_defaults(command=_evaluate)

    scenes = commands.add_parser("scenes", help="the bundled model's world").add_subparsers(required=True, metavar="COMMAND")
    pretrain = scenes.add_parser("pretrain", help="make the bundled model from nothing")
    pretrain.add_argument("--out", type=Path, required=True, help="directory of the pipeline")
    pretrain.add_argument("--vae-steps", type=int, default=3500, help="default %(default)s")
    pretrain.add_argument("--steps", type=int, default=12000, help="of flow matching (default %(default)s)")
    pretrain.add_argument("--pictures", type=int, default=40000, help="drawn for training (default %(default)s)")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--device", default="cpu")
    pretrain.set_defaults(command=_pretrain)
    render = scenes.add_parser("render", help="draw a prompt by rule, as the training pictures are")
    render.add_argument("prompt", nargs="+", help="e.g. 'a red circle left of a blue square'")
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--out", type=Path, default=Path("scenes"), help="directory of the pictures (default %(default)s)")
    render.set_defaults(command=_render)
    return parser


def _keys(section: type = Config, prefix: str = "") -> str:
    return "\n".join(
        f"  {key}" + (f"  ({kind}, required)" if default is PydanticUndefined else f"={_yaml(default)}  ({kind})")
        + (f"\n      {text}" if text else "")
        for key, kind, default, text in describe(section, prefix)
    )


def _yaml(value) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=None, help="pipeline directory, hub id or 'scenes' (default: the run's, or scenes)")
    parser.add_argument("--run", type=Path, help="a finished run: its model with what it learned")
    parser.add_argument("--prompts", metavar="FILE", help=".txt or .jsonl, or 'scenes' for the held-out scenes")
    parser.add_argument("--steps", type=int, default=8, help="transitions (default %(default)s)")
    parser.add_argument("--solver", choices=list(SOLVERS), default="dpmpp_2m", help="default %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--guidance-scale", type=float, default=3.5, help="default %(default)s")


def _train(arguments: argparse.Namespace) -> int:
    from neighbor_grpo.trainer import Interrupted, Trainer

    files = [item for item in arguments.config if "=" not in item]
    overrides = [item for item in arguments.config if "=" in item]
    if arguments.resume and arguments.config:
        raise UserError("--resume takes its settings from the run: leave out the configuration and the changes")
    try:
        trainer = Trainer.resume(arguments.resume) if arguments.resume else Trainer(load_config(files, overrides))
        trainer.run()
    except Interrupted as stop:
        print(f"neighbor-grpo: {stop}", file=sys.stderr)
        return 128 + stop.signum
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from neighbor_grpo.compare.page import write
    from neighbor_grpo.compare.runs import run_all
    from neighbor_grpo.trainer import Interrupted

    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", arguments.part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part takes K/N with K from 1 to N, for instance 2/4, not {arguments.part!r}")
    comparison, entries = load_comparison(arguments.config, arguments.overrides)
    try:
        run_all(comparison, entries[int(match[1]) - 1 :: int(match[2])])
    except Interrupted as stop:
        print(f"neighbor-grpo: {stop}", file=sys.stderr)
        return 128 + stop.signum
    print(write(comparison, entries))
    return 0


def _loaded(arguments: argparse.Namespace):
    """(model, what it is in words) of --model and --run."""
    from neighbor_grpo.evaluate import load_trained

    return load_trained(
        arguments.model, arguments.run, arguments.device, arguments.height, arguments.width, arguments.guidance_scale
    )


def _sample(arguments: argparse.Namespace) -> None:
    import torch

    from neighbor_grpo.data import read_prompts
    from neighbor_grpo.evaluate import sample, to_pil

    prompts = arguments.prompt or []
    if arguments.prompts:
        prompts += [prompt.text for prompt in read_prompts(arguments.prompts, held_out=True)]
    if not prompts:
        raise UserError("nothing to draw: give --prompt TEXT or --prompts FILE")
    model, _ = _loaded(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = arguments.seed or [0]
    noise = torch.stack([model.noise(1, torch.Generator().manual_seed(seed))[0] for seed in seeds])
    for n, prompt in enumerate(prompts):
        images = sample(model, model.encode([prompt]), noise[None], arguments.steps, arguments.solver)
        for seed, image in zip(seeds, images[0], strict=True):
            file = arguments.out / f"{n:04d}-seed{seed}.png"
            to_pil(image).save(file)
            print(file, prompt)


def _evaluate(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.data import prompt_hash, read_prompts
    from neighbor_grpo.evaluate import check_measures, evaluate

    names = arguments.measure or ["scenes", "scenes_strict", "scenes_sparse", "scenes_distance", "diversity", "jpeg_size"]
    check_measures(names)
    prompts = read_prompts(arguments.prompts or "scenes", held_out=True)[: arguments.limit]
    model, what = _loaded(arguments)
    values = evaluate(model, prompts, names, arguments.seeds, arguments.steps, arguments.solver)
    settings = what | {
        "prompts": arguments.prompts or "scenes", "number_of_prompts": len(prompts), "prompts_sha256": prompt_hash(prompts),
        "seeds": arguments.seeds, "steps": arguments.steps, "solver": arguments.solver,
    }
    text = json.dumps({"values": values, "settings": settings}, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _pretrain(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.scenes.pretrain import pretrain

    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"{arguments.out} is not empty: choose another --out")
    pretrain(
        arguments.out, arguments.vae_steps, arguments.steps, arguments.pictures, arguments.seed, arguments.device
    )


def _render(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from neighbor_grpo.evaluate import to_pil
    from neighbor_grpo.scenes.render import render
    from neighbor_grpo.scenes.world import parse, sample_scene

    specs = [parse(prompt) for prompt in arguments.prompt]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for n, spec in enumerate(specs):
        file = arguments.out / f"{n:04d}.png"
        to_pil(torch.from_numpy(render(sample_scene(spec, rng), rng))).save(file)
        print(file, spec.prompt)


if __name__ == "__main__":
    sys.exit(main())
