"""Findings about a run: what was looked at, how bad it is, and what to do; and the cheap checks of a training run itself.

Every name is a section of the troubleshooting guide, in which its threshold is derived.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from neighbor_grpo.config import Config

Verdict = Literal["ok", "note", "warning", "error"]
GUIDE = "https://neighbor-grpo.github.io/neighbor-grpo/troubleshooting/"
FIRST = 3  # iterations in which a training run checks its figures
RESOLUTION = 2.0**-24  # half the distance from 1 to the next number in fp32: a ratio within a smaller clip range is always 1
ROUNDING = 1 / 255 / 12**0.5  # root mean square of the rounding of pictures to 8 bits
TRIAL = 20  # iterations; a shorter run is a trial, whose rate is looked at as if it had so many
FORETOLD = 0.3  # least rank correlation of drafts with what is drawn from them
MOST_CLIPPED = 0.375  # half of the decisions in three of four steps: what a policy that moves at random reaches

REMEDIES = {  # name -> what to do
    "versions": "install a torch build for the GPU of this machine, or set device=cpu if the CPU is meant",
    "memory": "set batch.rollout, batch.update or batch.decode lower (neighbor-grpo plan says what fits)",
    "sampling": "check the scheduler's configuration, model.dtype and model.quantize, and report it",
    "text_encoder": "download the model again, and check its tokenizer, its text encoder and model.max_sequence_length",
    "reward_range": "choose a finer reward: one whose scores differ between pictures",
    "reward_noise": "make the reward deterministic: fix its seeds, switch dropout off, or average several scores",
    "scorer_failures": "read the reasons in failures.jsonl, and mend the reward or its server",
    "prompt_order": "return the scores in the order of the pictures, each by the prompt and the metadata at its own place",
    "reward_sign": "return a number that is higher for better pictures, and give the reward a positive weight",
    "spread": "raise method.sigma (neighbor-grpo probe proposes a value), let paths part earlier, or choose a finer reward",
    "scouts": "raise scouts.steps, set scouts.fp8=false, or leave scouts out: random drafts are a poor choice at a high price",
    "sigma_large": "lower method.sigma (neighbor-grpo probe proposes a value)",
    "gradient_signal": "raise prompts.per_iteration or method.group_size, or choose a smoother reward",
    "flat_times": "let groups part earlier (method.part_from and part_to), or choose a finer reward",
    "noise_floor": "raise method.clip, or set model.dtype=float32, model.fp8_rollout=false and method.temperature=dim",
    "clipped": "raise method.clip (published values are 1e-5 to 1e-3), or lower optimizer.lr",
    "frozen": "check model.lora.targets, and that the method neither detaches its loss nor switches requires_grad off",
    "rate_low": "raise optimizer.lr, or train for more iterations",
    "rate_high": "lower optimizer.lr by a factor of 3 to 10, or add optimizer.warmup",
    "one_prompt": "look at the findings above; without any, raise optimizer.lr or choose a finer reward",
    "diverged": "lower optimizer.lr, set method.temperature=dim or model.dtype=float32, and resume from the last checkpoint",
    "reward_falls": "check the sign of the reward and its weight; then lower optimizer.lr",
    "hacking": "stop earlier (evaluate.best keeps the best weights, evaluate.early_stop ends a run), or train on both rewards",
    "drift": "lower optimizer.lr, stop earlier, or train on a reward that asks for variety as well",
    "throughput": "look at the phase in docs/metrics.md: time/reward often wants reward.overlap=true or a server of its own",
    "state": "resume the run, or begin another one",
}


@dataclass(frozen=True)
class Finding:
    """Hold the result of one check: the number that was measured and the number that it was compared with."""

    name: str  # a key of REMEDIES
    verdict: Verdict
    text: str  # what was seen
    value: float | None = None
    threshold: float | None = None

    @property
    def remedy(self) -> str:
        """Return what to do; nothing where all is well."""
        return "" if self.verdict == "ok" else REMEDIES[self.name]

    @property
    def link(self) -> str:
        """Return the address of the section in the troubleshooting guide."""
        return f"{GUIDE}#{self.name}"

    @property
    def line(self) -> str:
        """Return the finding as one line, for the output of a training run."""
        return f"{self.verdict}: {self.text}: {self.remedy} ({self.link})"

    def record(self) -> dict[str, Any]:
        """Return the finding for JSON; a number that is not finite becomes null."""
        numbers = {"value": self.value, "threshold": self.threshold}
        known = {key: value if value is not None and isfinite(value) else None for key, value in numbers.items()}
        words = {"name": self.name, "verdict": self.verdict, "text": self.text, "remedy": self.remedy, "link": self.link}
        return words | known


def floor_finding(floor: float, config: Config) -> Finding | None:
    """Compare |log rho| before the first optimizer step, and the resolution of fp32, with the clip range.

    None for a method without a clip range.
    """
    clip = getattr(config.method, "clip", None)
    if clip is None:
        return None
    floor = max(floor, RESOLUTION)
    text = f"the log-ratio is {floor:.2g} before anything is learned, and method.clip is {clip:.2g}"
    if floor >= clip:
        return Finding("noise_floor", "error", f"rounding alone decides what is clipped: {text}", floor, clip)
    verdict: Verdict = "warning" if floor > clip / 2 else "ok"  # clipped on the way to half of the range
    return Finding("noise_floor", verdict, text, floor, clip / 2)


def early(figures: Mapping[str, float], config: Config) -> list[Finding]:
    """Return what is wrong with the figures of one of the first iterations, a line of metrics.jsonl."""
    found: list[Finding] = []
    groups = config.prompts.per_iteration
    flat = [name for name in config.reward.train if figures.get(f"flat_groups/{name}") == groups]
    if flat:
        text = f"the {flat[0]} rewards of all {groups} groups are the same within their group, so nothing is learned from it"
        found.append(Finding("spread", "error", text, float(groups), float(groups)))
    elif figures.get("grad_norm") == 0:
        found.append(Finding("frozen", "error", "rewards differ, but the gradient is exactly 0", 0.0, 0.0))
    floor = floor_finding(figures.get("ratio/noise_floor", 0.0), config)
    if floor and floor.verdict != "ok":
        found.append(floor)
    foretold = figures.get("scouts/rank_correlation", 1.0)
    if foretold < FORETOLD:
        text = f"the order of the drafts agrees with that of the samples by a rank correlation of {foretold:.2f} only"
        found.append(Finding("scouts", "warning", text, foretold, FORETOLD))
    clipped = figures.get("ratio/clipped", 0.0)
    if clipped > MOST_CLIPPED:
        text = f"the clip cuts off {clipped:.0%} of the decisions"
        found.append(Finding("clipped", "warning", text, clipped, MOST_CLIPPED))
    return found


class EarlyWarnings:
    """Check the first iterations of a run, and say each finding once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.said: set[str] = set()

    def say(self, iteration: int, figures: Mapping[str, float], say: Callable[[str], None]) -> None:
        """Say a line for each finding that is new in this iteration."""
        for finding in early(figures, self.config) if iteration <= FIRST else ():
            if finding.name not in self.said:
                self.said.add(finding.name)
                say(finding.line)
