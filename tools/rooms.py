"""Rooms of the package and the imports between them: `python tools/rooms.py` prints the table.

A room is a package or a module directly under `neighbor_grpo`.  An arrow is a pair of rooms of which the first imports the
second.  Every arrow points from a higher room to a lower one.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "neighbor_grpo"
ORDER = (  # from low to high
    "errors",
    "console",
    "files",
    "flow",
    "worlds",
    "prompts",
    "methods",
    "models",
    "rewards",
    "config",
    "run",
    "evaluate",
    "arena",
    "planning",
    "training",
    "compare",
    "commands",
    "cli",
    "__main__",
    "__init__",
)
Arrows = dict[tuple[str, str], list[str]]  # (from, to) -> "file:line" of every import


def room_of(file: Path) -> str:
    """Return the room of a file of the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(room: str) -> int:
    """Return the place of a room in the order, 0 for the lowest; -1 for a room that the order lacks."""
    return ORDER.index(room) if room in ORDER else -1


def files() -> dict[str, list[Path]]:
    """List the files of every room."""
    found: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(room_of(file), []).append(file)
    return found


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the room and the line of every import from this package, those inside of functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            package, *rest = module.split(".")
            if package == PACKAGE.name:
                known = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
                yield rest[0] if known else "__init__", node.lineno


def arrows() -> Arrows:
    """Collect the imports between different rooms."""
    found: Arrows = {}
    for room, paths in files().items():
        for path in paths:
            for target, line in imported(path):
                if target != room:
                    found.setdefault((room, target), []).append(f"{path.relative_to(PACKAGE)}:{line}")
    return found


def upward(found: Arrows) -> list[str]:
    """List the imports of a room that stands higher than the importing one."""
    return [
        f"{place} ({room}) imports {target}, which stands higher"
        for (room, target), places in found.items()
        if level(target) > level(room)
        for place in places
    ]


def circle(found: Arrows) -> list[str]:
    """Return the rooms of one circle of imports, or an empty list."""
    graph = TopologicalSorter[str]()
    for room, target in found:
        graph.add(room, target)
    try:
        graph.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def unknown() -> list[str]:
    """List the rooms that the declared order lacks."""
    return [room for room in files() if room not in ORDER]


def main() -> int:
    """Print one line for each room, highest first, and what breaks the rules; return 1 if something does."""
    found, rooms = arrows(), files()
    mistakes = [f"{room} is missing in the order of tools/rooms.py" for room in unknown()]
    for room in sorted(rooms, key=level, reverse=True):
        lines = sum(len(path.read_text().splitlines()) for path in rooms[room])
        targets = sorted((target for source, target in found if source == room), key=level)
        print(f"{room:10} {len(rooms[room]):3} files {lines:5} lines   imports {', '.join(targets) or '-'}")
    mistakes += upward(found)
    mistakes += [f"circle: {' -> '.join(around)}"] if (around := circle(found)) else []
    print(f"{len(rooms)} rooms, {len(found)} arrows", *mistakes, sep="\n")
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
