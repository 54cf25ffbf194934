"""Options that several commands share."""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from neighbor_grpo.compare.settings import Comparison, Entry, read_comparison
from neighbor_grpo.config import Config, Key, check_names, load_config
from neighbor_grpo.config.keys import written
from neighbor_grpo.config.reading import parse
from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.methods.fields import MOST_STEPS, SolverName
from neighbor_grpo.models.adapter_files import check_adapter
from neighbor_grpo.models.settings import known_device
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.prompts.reading import ALL, Choice, read_prompts

if TYPE_CHECKING:
    from neighbor_grpo.run.weights import Loaded

STEPS, SOLVER = 8, "dpmpp_2m"
# options that are settings of a model
SETTINGS = ("revision", "variant", "transformer", "shift", "height", "width", "num_frames", "guidance_scale", "cfg")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # what a command is added to


def number(kind: type[int] | type[float], least: float, most: float = 1e15, above: bool = False) -> Callable[[str], Any]:
    """Return an argparse type: a number from `least` to `most`; `above`: larger than `least`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number: give {wanted}") from None
        if not least <= value <= most or (above and value == least):  # NaN neither
            raise argparse.ArgumentTypeError(f"{shown(text)[1:-1]} is out of range: give {wanted}")
        return value

    name = "a whole number" if kind is int else "a number"
    limit = f" and at most {most:g}"
    wanted = f"{name} {'above' if above else 'of at least'} {least:g}{limit}"
    return read


def shift(text: str) -> float | str:
    """Return the shift of a time grid, an argparse type."""
    return text if text == "auto" else number(float, 0, 1000, above=True)(text)


count = number(int, 1, 10**6)
steps = number(int, 1, MOST_STEPS)
pixels = number(int, 1, 2**14)
random_seed = number(int, 0, 2**63 - 1)


def place(text: str) -> Path:
    """Return a path with its ~ replaced by the home directory, an argparse type."""
    try:
        return Path(expand_home(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def lora(text: str) -> str:
    """Return where a LoRA is, an argparse type; one on this machine is looked at."""
    try:
        check_adapter(text)
        return expand_home(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def new_file(text: str) -> Path:
    """Return the path of a file that can be written, an argparse type: what a command found is not lost for its place."""
    path = place(text)
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{shown(text)} cannot be written: give a file in a directory that exists")
    return path


def device(text: str) -> str:
    """Return the name of a device, an argparse type."""
    try:
        return known_device(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---------------------------------------------------------------- configurations


def configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read a run's configuration."""
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="NAME",
        help="a configuration of the package, below CONFIG and key=value; may be repeated (neighbor-grpo presets lists them)",
    )
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG | key=value",
        help="YAML files, the later over the earlier, then single keys; without any the demonstration",
    )


def configuration(arguments: argparse.Namespace, prompts: bool = True) -> Config:
    """Return the configuration of presets, YAML files and key=value; of the demonstration where nothing is given.

    All that it names is checked here, before a library is loaded; `prompts`: also the prompt files that a preset names.
    """
    items = arguments.config
    presets = arguments.preset or ([] if items else ["demo"])
    config = load_config([item for item in items if "=" not in item], [item for item in items if "=" in item], presets)
    check_names(config, prompts)
    return config


def comparison_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the options of commands that read a comparison."""
    parser.add_argument(
        "config", metavar="PRESET | FILE", help=f"a comparison of the package, for instance {example}, or a YAML file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single keys of the comparison to change")


def comparison_of(arguments: argparse.Namespace) -> tuple[Comparison, list[Entry]]:
    """Return a comparison and its rows, before their budgets are counted; all that they name is checked."""
    comparison, entries = read_comparison(arguments.config, arguments.overrides)
    for entry in entries:
        check_names(entry.config)
    return comparison, entries


def key_lines(keys: "list[Key]") -> str:
    """Return the lines of help for keys: each with its default, type and meaning."""
    return "\n".join(
        f"  {key.name}"
        + (f"  ({key.kind}, required)" if key.required else f"={written(key.default)}  ({key.kind})")
        + (f"\n      {key.text}" if key.text else "")
        for key in keys
    )


# ---------------------------------------------------------------- models and scorers


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that sample from a model."""
    parser.add_argument("--model", help="pipeline directory, hub id, scenes, scenes_4 or words (default: the run's, or scenes)")
    parser.add_argument("--run", type=place, help="a finished run: its model with the weights that it learned")
    parser.add_argument("--best", action="store_true", help="with --run: the best weights by evaluate.best, not the last")
    parser.add_argument(
        "--lora", type=lora, metavar="PATH", help="a LoRA of any layout, applied to --model: file, folder or hub id"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a .txt, .jsonl, .json, .csv, .tsv or .parquet file, a dataset (directory or hub id), - for stdin, or "
        "one of scenes, hpdv2, geneval, drawbench",
    )
    parser.add_argument(
        "--prompts-key", metavar="NAME", help="column of the texts (default: prompt, or the one that can be it)"
    )
    parser.add_argument("--prompts-split", metavar="NAME", help="split of a dataset (default: the only one)")
    parser.add_argument(
        "--prompts-metadata",
        metavar="NAME",
        action="append",
        help="a column that is kept for the rewards; may be repeated (default: all)",
    )
    parser.add_argument("--steps", type=steps, help=f"transitions of the sampling (default {STEPS})")
    parser.add_argument("--solver", choices=get_args(SolverName), help=f"solver of the sampling (default {SOLVER})")
    parser.add_argument("--device", type=device, default="auto", help="auto, cuda, mps or cpu (default %(default)s)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id (default: the run's, or main)")
    parser.add_argument("--variant", metavar="NAME", help="files of weights, for instance fp16 (default: the run's, or none)")
    parser.add_argument(
        "--transformer", metavar="PLACE", help="another transformer: directory, hub id or file (default: the run's, or none)"
    )
    parser.add_argument("--shift", type=shift, help="shift of the times, a number or auto (default: the run's, or auto)")
    parser.add_argument("--height", type=pixels, help="pixels (default: the run's, or the model's)")
    parser.add_argument("--width", type=pixels, help="pixels (default: the run's, or the model's)")
    parser.add_argument(
        "--num-frames", type=number(int, 1, 10**4), help="frames of a video (default: the run's, or the model's)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=number(float, -1e6, 1e6),
        help="for a guidance embedding (default: the run's, or the pipeline's)",
    )
    parser.add_argument("--cfg", type=number(float, 1), help="classifier-free guidance, 1 = without (default: the run's, or 1)")


def given_prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """Read the prompts that the model options name."""
    choice = Choice(arguments.prompts_key, arguments.prompts_split, arguments.prompts_metadata)
    if arguments.prompts:
        return read_prompts(arguments.prompts, True, choice)
    if choice != ALL:
        raise UserError("--prompts-key, --prompts-split and --prompts-metadata describe a file: give --prompts FILE")
    return []


def loaded(arguments: argparse.Namespace) -> "Loaded":
    """Load the model that the model options describe."""
    from neighbor_grpo.run.weights import load_trained

    return load_trained(
        arguments.model,
        arguments.run,
        arguments.device,
        arguments.best,
        arguments.lora,
        {key: getattr(arguments, key) for key in SETTINGS},
    )


def sampling(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return the transitions and the solver of the sampling."""
    return arguments.steps or STEPS, arguments.solver or SOLVER


def scorer_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that gives settings to scorers."""
    parser.add_argument(
        "--scorer",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "key=value"),
        help="settings of a scorer, for instance --scorer hpsv2.1 weights=DIR device=cuda; may be repeated",
    )


def scorers(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return {name: {key: value}} of the option --scorer."""
    settings: dict[str, dict[str, Any]] = {}
    for name, *changes in arguments.scorer:
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise UserError(f"--scorer {name}: {change!r} is not a setting: write key=value, for instance weights=DIR")
            settings.setdefault(name, {})[key] = parse(value, change)
    return settings


def again(arguments: argparse.Namespace, name: str) -> str:
    """Return the command line of these options in another directory.  arguments.parser: the parser of the command `name`."""
    words = ["neighbor-grpo", name]
    for key, value in vars(arguments).items():
        if key in ("root", "parser", "out") or value in (None, [], arguments.parser.get_default(key)):
            continue
        option = f"--{key.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [option, *([] if one is True else map(str, one) if isinstance(one, list) else [str(one)])]
    return shlex.join(words)
