"""The commands `arena plan`, `results` and `export`: how many votes a study needs, what they say, and pairs made of them."""

import argparse
from pathlib import Path

from neighbor_grpo.arena.votes import OVERALL
from neighbor_grpo.commands.arena_serve import check_installed
from neighbor_grpo.commands.options import Commands, count, number, place
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic


def add(parts: Commands) -> None:
    """Add the commands."""
    _add_plan(parts)
    _add_results(parts)
    _add_export(parts)


def _add_plan(parts: Commands) -> None:
    plan = parts.add_parser(
        "plan",
        help="how many votes a study needs",
        description="Compute how many votes make the 95 % interval of a win rate so narrow, and how long they take.",
    )
    two, share, option = number(int, 2, 10**6), number(float, 0, 1), plan.add_argument
    option("--models", type=two, default=2, metavar="N", help="default %(default)s")
    option("--prompts", type=two, required=True, metavar="N", help="different prompts")
    option("--seeds", type=count, default=1, metavar="N", help="pictures of each prompt (default %(default)s)")
    option("--raters", type=two, required=True, metavar="N", help="people who vote")
    option("--width", type=number(float, 0, 1, above=True), default=0.1, help="upper less lower end (default %(default)s)")
    option("--win-rate", type=share, default=0.5, metavar="SHARE", help="expected (default %(default)s, the widest interval)")
    option("--ties", type=share, default=0.0, metavar="SHARE", help="expected (default %(default)s, the widest interval)")
    variance = "share of the variance of a vote that comes from"
    option("--rater-share", type=share, default=0.05, metavar="SHARE", help=f"{variance} the rater (default %(default)s)")
    option("--prompt-share", type=share, default=0.3, metavar="SHARE", help=f"{variance} the prompt (default %(default)s)")
    option("--seconds", type=number(float, 0, 3600, above=True), default=10.0, help="of a vote (default %(default)s)")
    plan.set_defaults(command=run_plan)


def _add_results(parts: Commands) -> None:
    results = parts.add_parser(
        "results",
        help="what the votes of a study say",
        description="Print win rates, scores and agreement of a study, also while it goes on.",
    )
    _study_options(results)
    option = results.add_argument
    option("--out", type=place, metavar="DIR", help="also write table.md, votes.csv, results.json and results.html there")
    option(
        "--evaluation",
        action="append",
        default=[],
        metavar="MODEL=DIR",
        help="the evaluation of a model's pictures, once for each model: how far its metrics agree with people",
    )
    results.set_defaults(command=run_results)


def _add_export(parts: Commands) -> None:
    export = parts.add_parser(
        "export",
        help="preference pairs (prompt, chosen, rejected) from the votes of a study",
        description='Write pairs.jsonl and its pictures. Of two pictures the one with more votes is chosen; ties, "both bad" '
        "and attention checks do not count.",
    )
    _study_options(export)
    option = export.add_argument
    option("folders", nargs="+", metavar="[NAME=]DIR", help="the folders that the study was served from, in the same order")
    option("--out", type=place, required=True, metavar="DIR", help="a new directory")
    option("--question", default=OVERALL, metavar="NAME", help="default %(default)s")
    export.set_defaults(command=run_export)


def _study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read a study."""
    parser.add_argument("db", metavar="DB", help="the --db of the study")
    parser.add_argument(
        "--min-consistency",
        type=number(float, 0, 1),
        metavar="SHARE",
        help="leave out raters who passed a smaller share of the attention checks (default: leave out nobody)",
    )


def run_plan(arguments: argparse.Namespace) -> None:
    """Print how many votes a study needs, and what that assumes."""
    from neighbor_grpo.arena.power import Design, plan
    from neighbor_grpo.run.pages import markdown_table

    a = arguments
    design = Design(a.models, a.prompts, a.seeds, a.raters, a.win_rate, a.ties, a.rater_share, a.prompt_share)
    say(markdown_table(plan(design, a.width, a.seconds)))
    say(design.assumptions(a.seconds))


def run_results(arguments: argparse.Namespace) -> None:
    """Print the tables of a study and write its report."""
    check_installed()
    from neighbor_grpo.arena import results_page
    from neighbor_grpo.arena.evaluations import read_evaluations
    from neighbor_grpo.arena.results import results_of
    from neighbor_grpo.arena.results_tables import as_markdown
    from neighbor_grpo.arena.store import read_votes

    if arguments.out:
        atomic.refuse_used(arguments.out)
    study, votes = read_votes(arguments.db)
    measured = read_evaluations(arguments.evaluation, study.models, study.prompts, [len(seeds) for seeds in study.seeds])
    results = results_of(study.models, study.categories, study.questions, votes, arguments.min_consistency, measured)
    say(as_markdown(results))
    if arguments.out:
        say(results_page.write(arguments.out, results, Path(arguments.db).stem))


def run_export(arguments: argparse.Namespace) -> None:
    """Write the preference pairs of a study."""
    check_installed()
    from neighbor_grpo.arena.agreement import attentive
    from neighbor_grpo.arena.preferences import preferences, write
    from neighbor_grpo.arena.store import read_votes
    from neighbor_grpo.arena.study import read_study

    atomic.refuse_used(arguments.out)
    info, votes = read_votes(arguments.db)
    if arguments.question not in info.questions:
        raise UserError(f"unknown question {arguments.question!r}: choose among {', '.join(info.questions)}")
    study = read_study(arguments.folders, info.questions)
    study.info.refuse_other(info, arguments.db)
    kept = attentive(votes, arguments.min_consistency)
    found, left_out = preferences([vote for vote in kept if vote.question == arguments.question and vote.purpose == "vote"])
    if not found:
        raise UserError(f"{arguments.db} has no pair of pictures of which more raters prefer one: let more people vote first")
    files = {(info.models[model], prompt, seed): file for (model, prompt, seed), file in study.files.items()}
    say(write(arguments.out, found, files, info.prompts, info.categories, arguments.question))
    say(f"{len(found)} pairs; {left_out} pairs of pictures are left out, with a tie or as many votes for both")
