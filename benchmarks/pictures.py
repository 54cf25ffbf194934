"""Pictures of a comparison's methods, of the same prompts and noise, before training and after each method's first seed.

    python benchmarks/pictures.py RUNS FILE.png [--rows NAME ...] [--prompts 8] [--seeds 2] [--height 96]

RUNS is the run_dir of `neighbor-grpo compare`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def rows_of(runs: Path, wanted: Sequence[str] = ()) -> list[Any]:
    """Read the finished rows of a comparison from its run_dir, all or those named."""
    from neighbor_grpo.compare.rows import read_row
    from neighbor_grpo.compare.settings import read_comparison
    from neighbor_grpo.run.record import COMPARISON

    if not (runs / COMPARISON).is_file():
        raise SystemExit(f"no comparison in {runs}: make it with neighbor-grpo compare FILE run_dir={runs}")
    comparison, entries = read_comparison(runs / COMPARISON, [f"run_dir={runs}"])
    found = [row for entry in entries if not wanted or entry.name in wanted if (row := read_row(entry, comparison))]
    if not found:
        raise SystemExit(f"no row in {runs} has come to its end{f': {list(wanted)}' if wanted else ''}")
    return found


def draw(rows: Sequence[Any], file: Path, prompts: int | None = None, seeds: int = 2, height: int = 96) -> None:
    """Draw a row for each prompt, and for each method a column of pictures from the same noises."""
    from neighbor_grpo.compare.page import pictures_of
    from neighbor_grpo.files.frames import gallery

    columns = pictures_of(rows)
    shown = {title: [row[:seeds] for row in found.frames()[:prompts]] for title, found in columns.items()}
    gallery(shown, columns["before"].prompts[:prompts], height).save(file, optimize=True)
    print(file)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--prompts", type=int, help="how many of them (default all that are kept)")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of a prompt (default %(default)s)")
    parser.add_argument("--height", type=int, default=96, help="pixels of a picture (default %(default)s)")
    arguments = parser.parse_args()
    draw(rows_of(arguments.runs, arguments.rows), arguments.file, arguments.prompts, arguments.seeds, arguments.height)


if __name__ == "__main__":
    main()
