"""What several commands take."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic_core import PydanticUndefined

from neighbor_grpo.config import Config, describe, load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.solvers import SOLVERS

if TYPE_CHECKING:
    from neighbor_grpo.run.weights import Loaded


def keys(section: type = Config, prefix: str = "") -> str:
    """Every key of a configuration with its default, type and meaning."""
    return "\n".join(
        f"  {key}"
        + (f"  ({kind}, required)" if default is PydanticUndefined else f"={_yaml(default)}  ({kind})")
        + (f"\n      {text}" if text else "")
        for key, kind, default, text in describe(section, prefix)
    )


def _yaml(value) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def configuration(items: Sequence[str]) -> Config:
    """Of YAML files and key=value changes, in any order."""
    return load_config([item for item in items if "=" not in item], [item for item in items if "=" in item])


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=None, help="pipeline directory, hub id or 'scenes' (default: the run's, or scenes)")
    parser.add_argument("--run", type=Path, help="a finished run: its model with what it learned")
    parser.add_argument("--best", action="store_true", help="of the run, the weights that were best by evaluate.best")
    parser.add_argument("--lora", metavar="DIR", help="a LoRA in diffusers' layout, over --model")
    parser.add_argument("--prompts", metavar="FILE", help=".txt or .jsonl, or scenes, hpdv2, geneval, drawbench")
    parser.add_argument("--steps", type=int, default=8, help="transitions (default %(default)s)")
    parser.add_argument("--solver", choices=list(SOLVERS), default="dpmpp_2m", help="default %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num-frames", type=int, help="of a video")
    parser.add_argument("--guidance-scale", type=float, help="of a guidance embedding (default: the run's, or the pipeline's)")
    parser.add_argument("--cfg", type=float, help="classifier-free guidance, 1 = none (default: the run's, or 1)")


def loaded(arguments: argparse.Namespace) -> "Loaded":
    """Load the model that the model options describe."""
    from neighbor_grpo.run.weights import load_trained

    return load_trained(
        arguments.model,
        arguments.run,
        arguments.device,
        arguments.best,
        arguments.lora,
        {key: getattr(arguments, key) for key in ("height", "width", "num_frames", "guidance_scale", "cfg")},
    )


def scorer_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scorer",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "key=value"),
        help="settings of a scorer, for instance --scorer hpsv2.1 weights=DIR device=cuda; may be repeated",
    )


def scorers(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{name: {key: value}} of --scorer."""
    settings: dict[str, dict[str, Any]] = {}
    for name, *changes in arguments.scorer:
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise UserError(f"--scorer {name}: {change!r} is no setting: write key=value, for instance weights=DIR")
            settings.setdefault(name, {})[key] = yaml.safe_load(value)
    return settings
