"""Prompt files: each format is read as what it is, or refused in one line.

    .txt           a prompt a line                    .csv, .tsv   a table with a head
    .jsonl         a JSON object or text a line       .parquet     a table
    .json          one JSON array of them             -            a prompt a line of the standard input

and datasets: a directory, or an id of the hub.
"""

import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import decode, expand_home, read_bytes
from neighbor_grpo.prompts.columns import ALL, LONGEST, Choice, Table, prompts_of
from neighbor_grpo.prompts.json_rows import columns_of, json_array, json_lines
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.prompts.tables import csv_table, dataset_table, is_dataset, parquet_table
from neighbor_grpo.worlds import PROMPTS as WORLDS

SETS = {"scenes_hard": WORLDS["scenes"] / "hard.txt"}  # training prompts of scenes with few single objects
SETS |= {file.stem: file for file in sorted((Path(__file__).parent / "sets").iterdir())}
MOST_BYTES = 2**30  # of a file
FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
STDIN = "-"  # the path of the standard input


def read_prompts(path: str, held_out: bool = False, choice: Choice = ALL) -> list[Prompt]:
    """Read prompts and their metadata, the other columns.

    path: a file, a dataset's directory or id, "-", one of WORLDS (the prompts of a bundled model), or one of SETS (test sets
    of the field).  The column "image" is a source picture, and "images" a list of them: files, by their paths from the prompt
    file or absolute.  Raises UserError that names file and line.
    """
    name, kind = path if path.isprintable() and len(path) <= 200 else shown(path, 200), _kind(path)
    if kind is None:
        known = f"a file ({', '.join(FORMATS)}), a dataset, - for the standard input, {', '.join([*WORLDS, *SETS])}"
        raise UserError(f"no prompt file {shown(path, 200)}: give {known}")
    if kind == "dataset":
        return prompts_of(dataset_table(path, name, choice.split), choice)
    if choice.split is not None:
        raise UserError(f"{name} has no splits, which are of datasets: leave out prompts.split (--prompts-split)")
    if kind == "stdin":
        return _lines(decode(_standard_input(sys.stdin), "the standard input"), "the standard input", choice)
    file = _file(path, held_out)
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        said = f"ends in {shown(file.suffix)}" if suffix else "has no suffix"
        raise UserError(f"{name} {said}, which is no format of prompts: convert or rename it to one of {', '.join(FORMATS)}")
    if suffix == ".parquet":
        return prompts_of(parquet_table(file, name), choice)
    text = decode(read_bytes(file, name, MOST_BYTES), name)
    return _lines(text, name, choice) if suffix == ".txt" else prompts_of(_table(text, name, file.parent, suffix), choice)


def exists(path: str) -> bool:
    """Return whether there may be prompts under a name; False also for a name that no file can have."""
    return _kind(path) is not None


def _kind(path: str) -> Literal["file", "dataset", "stdin"] | None:
    if path == STDIN:
        return "stdin"
    file = _file(path)
    if os.path.isfile(file):
        return "file"
    if os.path.isdir(file):
        return "dataset" if path and is_dataset(file) else None
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and file.suffix.lower() not in FORMATS and len(path) < 200
    return "dataset" if is_id else None


def _file(path: str, held_out: bool = False) -> Path:
    if path in WORLDS:
        return WORLDS[path] / ("heldout.txt" if held_out else "train.txt")
    return SETS.get(path) or Path(expand_home(path))


@lru_cache(maxsize=1)  # it can be read once, and is asked for several times
def _standard_input(stream: IO[str] | None) -> bytes:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("prompts from the standard input (-) cannot be shared by several processes: write them into a file")
    if stream is None or stream.isatty():
        raise UserError("nothing is piped into the standard input: write ... | neighbor-grpo ..., or give a file instead of -")
    return stream.buffer.read() if hasattr(stream, "buffer") else stream.read().encode()


def _table(text: str, name: str, folder: Path, suffix: str) -> Table:
    if suffix in (".csv", ".tsv"):
        return csv_table(text, name, folder, "," if suffix == ".csv" else "\t")
    rows = json_lines(text, name) if suffix == ".jsonl" else json_array(text, name)
    return Table(name, folder, columns_of(rows), lambda wanted: rows)


def _lines(text: str, name: str, choice: Choice) -> list[Prompt]:
    """Return a prompt for each line that is not empty.  Raises UserError for lines that are something else."""
    if choice.key is not None or choice.metadata is not None:
        raise UserError(f"{name} is text without columns: leave out prompts.key and prompts.metadata")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{name} is empty: write one prompt a line")
    if too_long := next((number for number, line in lines if len(line) > LONGEST), None):
        raise UserError(f"{name} line {too_long} has more than {LONGEST:,} characters: write one prompt a line")
    if _is_json(lines[0][1]) or _is_json(text):
        raise UserError(f"{name} holds JSON, not a prompt a line: name it .jsonl, or .json if it is one array")
    if comment := next((number for number, line in lines if re.match(r"#+(\s|$)", line)), None):
        raise UserError(f"{name} line {comment} begins with #: every line is a prompt, remove what is a comment")
    if all("\t" in line for _, line in lines):
        raise UserError(f"{name} has a tab in every line: name a table .tsv, with the names of its columns in the first line")
    return [Prompt(line) for _, line in lines]


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON object or array."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
