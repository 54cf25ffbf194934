"""Tables: .csv and .tsv files with a head, .parquet files, and datasets of the hub or of a directory."""

import csv
import importlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError, printable, shown
from neighbor_grpo.prompts.columns import Row, Table

_SAVED = ("dataset_info.json", "dataset_dict.json")  # of `save_to_disk`
_DATA = (".parquet", ".jsonl", ".csv", ".arrow")


def csv_table(text: str, name: str, folder: Path, delimiter: str) -> Table:
    """Return the table of a .csv or .tsv file, whose first line names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    lines = _csv_lines(reader, name)
    _, head = next(lines, (0, []))
    columns = [cell.strip() for cell in head]
    if twice := next((cell for cell in columns if columns.count(cell) > 1), None):
        raise UserError(f"{name} has two columns {shown(twice)}: rename one in its first line")

    def rows(wanted: Sequence[str]) -> Iterator[tuple[str, Row]]:
        for number, cells in lines:
            place = f"{name} line {number}"
            if len(cells) != len(columns):
                raise UserError(
                    f"{place} has {len(cells)} fields, and the first line {len(columns)}: put a field that holds "
                    f"{shown(delimiter)} in double quotes"
                )
            if delimiter == "\t" and any("\n" in cell for cell in cells):
                raise UserError(f"{place} ends a field of several lines: double the quotes inside of a field")
            yield place, dict(zip(columns, cells, strict=True))

    return Table(name, folder, columns, rows)


def _csv_lines(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that are not empty, by number."""
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name} line {reader.line_num}: {printable(str(error))}: put a field with quotes in double quotes, and double "
                "those inside"
            ) from error
        if cells is None:
            return
        if cells:
            yield reader.line_num, cells


def parquet_table(file: Path, name: str) -> Table:
    """Return the table of a .parquet file."""
    parquet = _library("pyarrow.parquet", "parquet", name)
    try:
        found = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise UserError(f"{name} cannot be read as parquet ({_reason(error)}): give a whole file") from error
    columns = found.schema_arrow.names
    return Table(name, file.parent, columns, lambda wanted: _numbered(name, found.read(columns=list(wanted)).to_pylist()))


def dataset_table(path: str, name: str, split: str | None) -> Table:
    """Return the table of a split of a dataset: a directory, or an id of the hub."""
    name = f"dataset {name}"
    datasets = _library("datasets", "datasets", f"{name}, which is no file,")
    datasets.disable_progress_bars()
    try:
        if any((Path(path) / file).is_file() for file in _SAVED):
            found = datasets.load_from_disk(path)
            parts = found if isinstance(found, dict) else {str(found.split or "train"): found}
            chosen = parts[_split(name, list(parts), split)]
        else:
            chosen = datasets.load_dataset(path, split=_split(name, datasets.get_dataset_split_names(path), split))
    except UserError:
        raise
    except Exception as error:  # of the hub, of the network, of any reader of data
        raise UserError(f"{name} cannot be read ({_reason(error)}): check its name, or the network") from error
    return Table(
        name, Path(path), chosen.column_names, lambda wanted: _numbered(name, chosen.select_columns(list(wanted)).to_list())
    )


def is_dataset(directory: Path) -> bool:
    """Return whether a directory holds a dataset: one of `save_to_disk`, or files of data in it or in its folder data."""
    try:
        files = [entry for place in (directory, directory / "data") if place.is_dir() for entry in place.iterdir()]
    except OSError:
        return False
    return any(entry.name in _SAVED or entry.suffix.lower() in _DATA for entry in files)


def _split(name: str, known: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None or wanted not in known:
        said = "has several splits" if wanted is None else f"has no split {shown(wanted)}"
        raise UserError(f"{name} {said}: choose prompts.split (--prompts-split) among {', '.join(known)}")
    return wanted


def _numbered(name: str, rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"{name} row {number}", row) for number, row in enumerate(rows, 1))


def _library(module: str, extra: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {module.split('.')[0]}: pip install 'neighbor-grpo[{extra}]'") from error


def _reason(error: BaseException) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:300])
