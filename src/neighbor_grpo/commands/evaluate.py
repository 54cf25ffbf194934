"""The command `evaluate`: measure a model, a run, a LoRA or a folder of pictures."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from neighbor_grpo.commands.options import (
    SETTINGS,
    Commands,
    again,
    count,
    given_prompts,
    loaded,
    model_options,
    number,
    place,
    sampling,
    scorer_option,
    scorers,
)
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.listing import Picture, category, write_listing
from neighbor_grpo.prompts.prompt import Prompt, prompt_hash
from neighbor_grpo.rewards.names import check_measures, check_scorers

if TYPE_CHECKING:  # these bring torch
    from neighbor_grpo.evaluate.measures import Measures
    from neighbor_grpo.evaluate.pictures import Folder, Pictures

GENERAL = ["diversity", "jpeg_size", "grid_artefacts", "saturation", "sharpness"]
SEEDS = 2
SCENES = ["scenes", "scenes_strict", "scenes_sparse", "scenes_distance"]


def add(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model, a run, a LoRA or a folder of pictures",
        description="Sample pictures of fixed prompts and seeds, or read a folder of pictures, and measure them. Scores that "
        "are in the output directory already are not computed again. Under torchrun the processes divide the prompts.",
    )
    model_options(evaluate)
    evaluate.add_argument(
        "--images", type=place, metavar="DIR", help="measure the pictures in this folder, instead of a model's"
    )
    evaluate.add_argument("--measure", action="append", metavar="NAME", help="a reward or metric; may be repeated")
    scorer_option(evaluate)
    evaluate.add_argument("--seeds", type=count, help=f"pictures of each prompt (default {SEEDS})")
    evaluate.add_argument("--limit", type=count, metavar="N", help="use the first N prompts only")
    evaluate.add_argument("--out", type=place, help="output directory (default: the first free evaluations/NNN)")
    evaluate.add_argument("--against", type=place, metavar="DIR", help="compare with another evaluation, picture by picture")
    evaluate.add_argument(
        "--max-failed",
        type=number(float, 0, 1),
        default=0.1,
        metavar="SHARE",
        help="largest share of pictures without a score; above it no mean is given (default %(default)s)",
    )
    evaluate.set_defaults(command=run, prompts="scenes", parser=evaluate)


def run(arguments: argparse.Namespace) -> None:
    """Measure pictures, write the evaluation and print its table."""
    drawn = ("model", "run", "best", "lora", "steps", "solver", "seeds", *SETTINGS)
    if arguments.images and (given := [name for name in drawn if getattr(arguments, name)]):
        raise UserError(f"--images are measured as they are: leave out --{' --'.join(given).replace('_', '-')}")
    known, prompts = scorers(arguments), given_prompts(arguments)[: arguments.limit]
    check_measures(arguments.measure or [], known)

    from accelerate import PartialState

    from neighbor_grpo.evaluate.evaluation import claimed
    from neighbor_grpo.evaluate.measures import load_measures
    from neighbor_grpo.evaluate.pictures import Folder

    state = PartialState(cpu=arguments.device == "cpu")
    if state.num_processes > 1 and not arguments.out:
        raise UserError("several processes need one output directory: give --out DIR")
    folder = Folder.of(arguments.images, len(prompts)) if arguments.images else None
    seeds = folder.seeds if folder else arguments.seeds or SEEDS
    names = arguments.measure or [*(SCENES if arguments.prompts == "scenes" else []), *GENERAL[0 if seeds > 1 else 1 :]]
    check_scorers(known, names)
    with claimed(arguments.out, state.is_main_process) as out:
        _evaluate(arguments, out, prompts, folder, load_measures(names, known), state.is_main_process)


def _evaluate(
    arguments: argparse.Namespace, out: Path, prompts: list[Prompt], folder: "Folder | None", measures: "Measures", main: bool
) -> None:
    from accelerate import PartialState

    from neighbor_grpo.evaluate import page
    from neighbor_grpo.evaluate.evaluation import begin, compare_with, measure_all, read_tables, summarize
    from neighbor_grpo.evaluate.pictures import Drawn
    from neighbor_grpo.models.text_cache import check_prompts

    seeds = folder.seeds if folder else arguments.seeds or SEEDS
    settings = {
        "prompts": arguments.prompts,
        "number_of_prompts": len(prompts),
        "prompts_sha256": prompt_hash(prompts),
        "seeds": seeds,
    }
    pictures: Pictures
    if folder:
        settings |= {"images": str(arguments.images)}
        pictures = folder
    else:
        source = loaded(arguments)
        check_prompts(source.model, prompts)
        steps, solver = sampling(arguments)
        settings |= source.settings | {"steps": steps, "solver": solver}
        pictures = Drawn(source.model, prompts, seeds, steps, solver, out / "pictures")
    if main:
        begin(out, settings)
    PartialState().wait_for_everyone()
    measure_all(out, pictures, prompts, measures)
    if main:
        tables = read_tables(out, len(prompts), measures)
        result, other = summarize(out, tables, measures, arguments.max_failed), None
        if arguments.against:
            result["against"] = compare_with(arguments.against, result["settings"], tables, len(prompts), measures)
            other = page.Other.read(arguments.against, len(prompts), measures)
        write_listing(out, _listed(out, pictures, prompts))
        say(page.write(out, result, pictures, prompts, tables, other, again(arguments, "evaluate")).rstrip("\n"))
        for name, reasons in result["reasons"].items():
            say(f"{name}: {result['failed'][name]} pictures without a score, for instance: {reasons[0]}")
        say(out / "gallery.html")


def _listed(out: Path, pictures: "Pictures", prompts: list[Prompt]) -> list[Picture]:
    """List what the pictures show, with their files as seen from `out`."""
    return [
        Picture(prompt.text, n, seed, Path(os.path.relpath(pictures.file(n, seed), out)).as_posix(), category(prompt.metadata))
        for n, prompt in enumerate(prompts)
        for seed in range(pictures.seeds)
    ]
