"""Sabotaged and healthy runs of the bundled model, and what `neighbor-grpo doctor` says about them.

    python benchmarks/doctor.py                    twelve sabotages and five healthy configurations, seed 0
    python benchmarks/doctor.py --seeds 0 1 2      with other seeds
    python benchmarks/doctor.py --only noise clip  some of them

A sabotage is named if one of its findings is a warning or an error: before the run, or else on a short run.  A healthy
configuration is checked both ways, and must have neither.  The table is printed and kept in OUT/table.md; what is done is not
done again.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from neighbor_grpo.models.bundled import BUNDLED

REWARDS = """
import torch
from neighbor_grpo.worlds.scenes.verify import scenes

def constant(images, prompts, metadata):
    return [0.5] * len(prompts)

def noise(images, prompts, metadata):
    return torch.rand(len(prompts))

def negated(images, prompts, metadata):
    return [-value for value in scenes(images, prompts, metadata)]

def harmonic(images, prompts, metadata):
    return torch.sin(2000 * images.mean((1, 2, 3)))

def reversed_prompts(images, prompts, metadata):
    return scenes(images, prompts[::-1], metadata)

def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))
"""

METHOD = """
from pydantic.dataclasses import dataclass
from neighbor_grpo.methods.neighbor import Neighbor

@dataclass(frozen=True)
class Frozen(Neighbor):
    def source(self, parts):
        for name, weight in parts.learner.weights.items():
            weight.requires_grad_("single" not in name)
        return None
"""

BAD = re.compile(r"^(?:warning|error) +([a-z_]+) ", re.M)


def truncated(out: Path) -> Path:
    """Copy the bundled model without the second half of its T5 embeddings, as a download that was cut off leaves it."""
    copy = out / "truncated"
    if not copy.is_dir():
        shutil.copytree(BUNDLED["scenes"], copy)
        file = copy / "text_encoder_2" / "model.safetensors"
        weights = load_file(file)
        for name in weights:
            if name.endswith(("shared.weight", "embed_tokens.weight")):
                weights[name][4:] = 0
        save_file(weights, file, {"format": "pt"})
    return copy


@dataclass(frozen=True)
class Case:
    """Describe a configuration; `names`: the findings of which one names the cause, none for a healthy one."""

    overrides: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    makes: Callable[[Path], tuple[str, ...]] = field(default=lambda out: ())


def _reward(function: str) -> Callable[[Path], tuple[str, ...]]:
    return lambda out: (f"reward={out / 'rewards.py'}:{function}",)


SHORT = ("prompts.per_iteration=4", "iterations=10", "evaluate.every=5", "evaluate.prompts=32", "optimizer.lr=3e-4")
CASES: dict[str, Case] = {
    "constant reward": Case((), ("reward_range",), _reward("constant")),
    "noisy reward": Case((), ("reward_noise",), _reward("noise")),
    "sign flipped": Case((), ("reward_sign",), _reward("negated")),
    "lr 0": Case(("optimizer.lr=1e-12",), ("rate_low",)),
    "lr x 1000": Case(("optimizer.lr=0.3",), ("rate_high",)),
    "clip 1e-12": Case(("method.clip=1e-12",), ("noise_floor",)),
    "sigma 1e-4": Case(("method.sigma=1e-4",), ("spread",)),
    "sigma 1, harmonic": Case(("method.sigma=1",), ("sigma_large", "gradient_signal"), _reward("harmonic")),
    "frozen parameters": Case((), ("frozen",), lambda out: (f"method.name={out / 'method.py'}:Frozen",)),
    "prompt order": Case((), ("prompt_order",), _reward("reversed_prompts")),
    "truncated encoder": Case((), ("text_encoder",), lambda out: (f"model.path={truncated(out)}", "prompts.path=scenes")),
    "hacked reward": Case(("optimizer.lr=1e-3", "iterations=12", "evaluate.every=6"), ("hacking",), _reward("brightness")),
    "healthy: neighbor": Case(),
    "healthy: sigma 0.5": Case(("method.sigma=0.5", "method.weighting=none")),
    "healthy: flow_grpo": Case(("method.name=flow_grpo", "method.group_size=12", "method.num_steps=8")),
    "healthy: dance_grpo": Case(("method.name=dance_grpo", "method.group_size=12", "method.num_steps=15")),
    "healthy: all weights": Case(("model.lora=null", "optimizer.lr=3e-5")),
}
SMOOTH = ("method.sigma=0.2", "method.weighting=scale")  # as in the demonstration


@dataclass(frozen=True)
class Row:
    """Hold what was said about a case: the names of warnings and errors before the run and on it."""

    case: str
    seed: int
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether the cause was named, or nothing was found in a healthy run."""
        wanted = CASES[self.case].names
        return bool({*self.before, *self.after} & {*wanted}) if wanted else not (self.before or self.after)


def command(log: Path, *arguments: str, until: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Run the command line, and end it where one of `until` is found; return the names of its warnings and errors."""
    if not log.is_file():
        asked = [sys.executable, "-m", "neighbor_grpo", *arguments]
        aside, told = log.with_suffix(".partial"), os.environ | {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        with (
            aside.open("w") as file,
            subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=file, text=True, env=told) as process,
        ):
            for line in process.stdout or ():
                file.write(line)
                if {*until} & {*BAD.findall(line)}:
                    process.terminate()
        if arguments[0] == "doctor" and process.returncode not in (0, 1, 3, -15):  # -15: ended above
            sys.exit(f"{aside}: exit code {process.returncode}; nothing was checked")
        aside.rename(log)
    return tuple(dict.fromkeys(BAD.findall(log.read_text())))


def looked_at(name: str, seed: int, out: Path) -> Row:
    """Check a case before its run, and on a short run if that is needed."""
    case, place = CASES[name], out / f"{name.replace(' ', '_').replace(':', '').replace(',', '')}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    overrides = [
        *SHORT,
        *(() if "method.name" in str(case) else SMOOTH),
        f"prompts.cache_dir={place / 'texts'}",
        f"seed={seed}",
    ]
    overrides = [*overrides, *case.overrides, *case.makes(out)]
    before = command(place / "before.log", "doctor", *overrides, until=case.names)
    if {*before} & {*case.names}:
        return Row(name, seed, before, ())
    if not (place / "run.log").is_file():
        shutil.rmtree(place / "run", ignore_errors=True)
    command(place / "run.log", "train", *overrides, f"run_dir={place / 'run'}")
    return Row(name, seed, before, command(place / "after.log", "doctor", str(place / "run")))


def table(rows: list[Row]) -> str:
    """Format the rows as Markdown."""
    lines = ["| case | seed | before the run | on the run | |", "|---|---|---|---|---|"]
    for row in rows:
        words = (", ".join(names) or "–" for names in (row.before, row.after))
        lines.append(f"| {row.case} | {row.seed} | {' | '.join(words)} | {'yes' if row.passed else '**no**'} |")
    sabotaged = [row for row in rows if CASES[row.case].names]
    healthy = [row for row in rows if not CASES[row.case].names]
    named, silent = sum(row.passed for row in sabotaged), sum(row.passed for row in healthy)
    return "\n".join(
        [*lines, "", f"named {named} of {len(sabotaged)}; nothing found in {silent} of {len(healthy)} healthy ones"]
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose names contain one of these words")
    parser.add_argument("--out", type=Path, default=Path("runs/doctor"))
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "rewards.py").write_text(REWARDS)
    (out / "method.py").write_text(METHOD)
    chosen = [name for name in CASES if not arguments.only or any(word in name for word in arguments.only)]
    rows: list[Row] = []
    for seed in arguments.seeds:
        for name in chosen:
            rows.append(looked_at(name, seed, out))
            print(rows[-1], rows[-1].passed, flush=True)
    (out / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
