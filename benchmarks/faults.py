"""Kill a run at its file operations and at random moments, let file operations fail, and resume: every run must end the same.

    python benchmarks/faults.py --kills 500 --failures 200 --seed 0

Each case runs one command in a process of its own, which dies (SIGKILL) or gets an error (ENOSPC, EIO, EROFS; once, or from
then on) at a file operation chosen at random; a write is cut in its middle first.  Then the command that a user would give
next is run without faults, and what the directory holds is compared bit for bit with that of an undisturbed run.  Needs a C
compiler and Linux.  Prints a table: cases and faults by command.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_commands import Command, commands
from safetensors import safe_open

HERE = Path(__file__).parent
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
VOLATILE = ("plan.txt", "report.html", "log.txt", "gallery.html", ".lock")  # hold times or the machine's speed


# ---------------------------------------------------------------- processes


def child(arguments: list[str], place: Path, arm: tuple[int, int, int] | None, log: Path, delay: float | None = None) -> int:
    """Run a command in a fork, with a fault or a kill after `delay` seconds; return its exit code, negative for a signal."""
    process = os.fork()
    if not process:
        code = 70
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
            from neighbor_grpo.cli import main

            n, error, rest = arm or (-1, 0, 0)
            faults().arm(f"{place}/".encode(), ctypes.c_long(n), error, rest)
            code = main(arguments)
            (place.parent / "count").write_text(str(faults().counted()))
        except BaseException:  # what the interpreter would print at its end
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def faults() -> ctypes.CDLL:
    """Return the preloaded library."""
    return ctypes.CDLL(None)


def contents(place: Path, original: Path) -> dict[str, object]:
    """Read everything that must be equal, by its path; times are left out, and `place` is written as `original`."""
    found: dict[str, object] = {}
    for file in sorted(path for path in place.rglob("*") if path.is_file() and path.name not in VOLATILE):
        data = file.read_bytes().replace(str(place).encode(), str(original).encode())
        name = file.relative_to(place).as_posix()
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            found[name] = [{k: v for k, v in line.items() if not k.startswith(("time/", "mfu/"))} for line in lines]
        elif file.suffix == ".jsonl":
            found[name] = sorted(data.splitlines())
        elif file.name in ("manifest.json", "results.json", "table.md", "table.csv", "README.md"):
            found[name] = None  # hashes of the other files, or seconds
        elif file.suffix == ".safetensors":  # whose header has its metadata in any order
            with safe_open(file, "np") as stored:
                tensors = {key: stored.get_tensor(key).tobytes() for key in stored.keys()}  # noqa: SIM118
                found[name] = (tensors, stored.metadata())
        else:
            found[name] = data
    return found


def difference(expected: dict[str, object], found: dict[str, object]) -> str:
    """Name the first difference; nothing where there is none."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} should not be there"
        if expected[name] != found[name]:
            return f"{name} differs"
    return ""


# ---------------------------------------------------------------- cases


class Campaign:
    """Disturb commands, and count what went wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.rows: dict[str, dict[str, int]] = {}
        self.faults: list[str] = []

    def disturb(self, command: Command, kills: int, moments: int, failures: int) -> None:
        """Run a command undisturbed, then with each kind of fault so many times."""
        whole = self.fresh("whole", command)
        began = time.monotonic()
        if child(command.run(whole), whole, None, self.root / "log"):
            raise SystemExit(f"{command.name} fails undisturbed: {(self.root / 'log').read_text()[-2000:]}")
        seconds, total = time.monotonic() - began, int((self.root / "count").read_text())
        expected = contents(whole, whole)
        for n in range(kills):
            self.case(command, "killed at an operation", expected, whole, (self.at(n, kills, total), 0, 0))
        for _ in range(moments):
            self.case(command, "killed at a moment", expected, whole, None, self.random.random() * seconds)
        for n in range(failures):
            arm = (self.at(n, failures, total), self.random.choice(ERRORS), self.random.randrange(2))
            self.case(command, "operation failed", expected, whole, arm)

    def at(self, n: int, cases: int, total: int) -> int:
        """Return an operation, so that the cases spread over all of them."""
        return min(total - 1, int((n + self.random.random()) * total / cases))

    def fresh(self, name: str, command: Command) -> Path:
        """Return a new directory that holds what the command starts from."""
        place, start = self.root / name, self.root / f"start-{command.name.split()[0]}"
        shutil.rmtree(place, ignore_errors=True)
        if command.prepare is None:
            place.mkdir()
            return place
        if not start.exists():
            place.mkdir()
            if child(command.prepare(place), place, None, self.root / "log"):
                raise SystemExit((self.root / "log").read_text()[-2000:])
            place.rename(start)
        shutil.copytree(start, place)
        return place

    def case(
        self, command: Command, kind: str, expected: dict[str, object], whole: Path, arm: tuple[int, int, int] | None,
        delay: float | None = None,
    ) -> None:  # fmt: skip
        """Disturb a command once, run it again, and compare."""
        place, log = self.fresh("case", command), self.root / "log"
        code = child(command.run(place), place, arm, log, delay)
        said = log.read_text(errors="replace")
        wrong = ""
        if kind == "operation failed" and (code not in (0, 2) or "Traceback" in said):
            wrong = f"ended with {code}: {said.strip()[-300:]}"
        # whole already: killed at its very end, or a failure that does not matter; an export is not made over another one
        again = difference(expected, contents(place, whole)) and child(command.again(place), place, None, log)
        if not wrong and again:
            wrong = f"does not resume ({again}): {log.read_text(errors='replace').strip()[-300:]}"
        wrong = wrong or difference(expected, contents(place, whole))
        row = self.rows.setdefault(command.name, {})
        row[kind] = row.get(kind, 0) + 1
        if wrong:
            row["wrong"] = row.get("wrong", 0) + 1
            self.faults.append(f"{command.name}, {kind} {arm if arm else ''}: {wrong}")
            print(self.faults[-1], flush=True)

    def table(self) -> str:
        """Write the counts as a table."""
        kinds = ("killed at an operation", "killed at a moment", "operation failed", "wrong")
        lines = [f"| command | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
        lines += [f"| {name} | {' | '.join(str(row.get(kind, 0)) for kind in kinds)} |" for name, row in self.rows.items()]
        sums = [sum(row.get(kind, 0) for row in self.rows.values()) for kind in kinds]
        return "\n".join([*lines, f"| **all** | {' | '.join(map(str, sums))} |"])


def preload() -> None:
    """Start this program again with the library that makes the faults, unless it is there."""
    if hasattr(faults(), "arm"):
        return
    library = Path(tempfile.mkdtemp()) / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def warm_up() -> None:
    """Import what the commands import, once for all forks: it takes longer than the commands themselves."""
    from neighbor_grpo import console

    console.silence_libraries()
    import torch._dynamo  # noqa: F401  which an optimizer imports at its first step

    from neighbor_grpo.compare import page, runs  # noqa: F401
    from neighbor_grpo.evaluate import evaluation  # noqa: F401
    from neighbor_grpo.models.bundled import BUNDLED
    from neighbor_grpo.models.registry import load_model
    from neighbor_grpo.run import export  # noqa: F401

    load_model(BUNDLED["scenes"])  # no backward: autograd refuses to work in a fork of a process that ran one


def main() -> int:
    """Disturb every command, print the table, and return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="over all commands; a third of them at random moments")
    parser.add_argument("--failures", type=int, default=200, help="failing operations over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="commands whose name contains this")
    arguments = parser.parse_args()
    preload()
    warm_up()
    root = Path(tempfile.mkdtemp())
    campaign, chosen = Campaign(root, arguments.seed), [c for c in commands() if (arguments.only or "") in c.name]
    try:
        for n, command in enumerate(chosen):
            share = [
                (total + n) // len(chosen)
                for total in (arguments.kills - arguments.kills // 3, arguments.kills // 3, arguments.failures)
            ]
            campaign.disturb(command, *share)
            print(command.name, campaign.rows.get(command.name, {}), flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(campaign.table())
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
