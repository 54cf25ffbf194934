"""How large the differences between papers and published code are on the bundled model: the table of docs/differences.md.

    python benchmarks/differences.py [--prompts 2] [density divergence ...]

Two settings of one method see the same noise, pictures and rewards.  `length` is |g| of the authors' code over |g| of the
formula, `cosine` that between the two, g the gradient of all optimizer steps of an iteration, before the first of them.
"""

import argparse
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from neighbor_grpo.config import load_config
from neighbor_grpo.console import silence_libraries
from neighbor_grpo.methods.mix_grpo import MixGRPO
from neighbor_grpo.models.sampling import batched_velocity, decode
from neighbor_grpo.training.doctor.patient import Patient, admitted

THREE = "reward.train={scenes: 1, scenes_sparse: 1, jpeg_compressibility: 1}"
AUTHORS_DEPTHS, OURS = "method.prune_depths=[15, 16, 17, 18]", "method.prune_depths=[14, 15, 16, 17]"
Row = tuple[str, str, str]  # difference, quantity, value


def gradient(patient: Patient) -> Tensor:
    """Return the gradient of the first iteration's rows, the mean over its optimizer steps."""
    one = patient.experience(0)
    parts = [torch.cat([g.flatten() for g in patient.gradient(rows, one.cond)]) for rows in one.updates]
    return torch.stack(parts).mean(0)


class Bench:
    """Measure with a number of prompts."""

    def __init__(self, prompts: int) -> None:
        self.rows = 24 * prompts  # of the model's batch: all groups at once
        self.common = [f"prompts.per_iteration={prompts}", f"batch.rollout={self.rows}", "evaluate.prompts=4"]

    def run(self, method: str, *settings: str):
        """Assemble a run of a method on the bundled model, with a LoRA."""
        return admitted(load_config(None, [f"method.name={method}", *self.common, *settings]))

    @cache  # noqa: B019, there is one bench
    def gradient(self, method: str, *settings: str) -> Tensor:
        """Return the gradient of a method's first iteration."""
        with self.run(method, *settings) as patient:
            return gradient(patient)

    def gradients(self, method: str, formula: Sequence[str], code: Sequence[str]) -> tuple[float, float]:
        """Return length and cosine of the code's gradient beside the formula's."""
        one, two = self.gradient(method, *formula), self.gradient(method, *code)
        return float(two.norm() / one.norm()), float(torch.cosine_similarity(one, two, dim=0))

    def compared(self, name: str, method: str, formula: Sequence[str], code: Sequence[str]) -> list[Row]:
        """Return the rows of a difference that only the gradient sees."""
        length, cosine = self.gradients(method, formula, code)
        return [(name, "length", f"{length:.3f}"), (name, "cosine", f"{cosine:.3f}")]

    # ---------------------------------------------------------------- one function a difference

    def density(self) -> list[Row]:
        """Measure Flow-CPS: log-probability without 1 / (2·std^2)."""
        name, cps = "density", ["method.sde=cps", "method.eta=0.8", "method.window=3"]
        with self.run("flow_grpo_fast", *cps, "method.strategy=frozen") as patient:
            steps = patient.source.collect(0).tree.steps[:3]
        weights = ", ".join(f"{2 * step.std**2:.2f}" for step in steps)
        rows = self.compared(name, "flow_grpo_fast", cps, [*cps, "method.density=distance"])
        return [(name, "weight of transitions 0, 1, 2", weights), *rows]

    def divergence(self) -> list[Row]:
        """Measure Flow-GRPO: the divergence by the rate of noise; the second optimizer step is the first that has one."""
        found = []
        for std in ("transition", "rate"):
            with self.run("flow_grpo", "method.kl=0.04", f"method.kl_std={std}", "optimizer.lr=3e-4") as patient:
                found.append(patient.step(patient.experience(0))["kl"])
        formula, code = found
        here = f"{0.04 * code / formula:.4f}"
        return [("kl_std", "divergence: formula, code", f"{formula:.3g}, {code:.3g}"), ("kl_std", "0.04 there is here", here)]

    def reward_std(self) -> list[Row]:
        """Measure BranchGRPO: the sample std of two states at the first split."""
        return self.compared("reward_std (branch_grpo)", "branch_grpo", [], ["method.reward_std=sample"])

    def weights(self) -> list[Row]:
        """Measure MixGRPO: weights of three rewards divided by their sum, before advantages are clipped."""
        name, shares = "aggregate", []
        for aggregate in ("advantages", "mean_advantages"):
            with self.run("mix_grpo", THREE, f"reward.aggregate={aggregate}") as patient:
                adv = torch.cat([rows.adv[rows.weight > 0] for rows in patient.experience(0).updates])
                shares.append(float((adv.abs() > patient.config.method.adv_clip).double().mean()))
        rows = self.compared(name, "mix_grpo", [THREE], [THREE, "reward.aggregate=mean_advantages"])
        return [(name, "advantages beyond the clip: formula, code", f"{shares[0]:.1%}, {shares[1]:.1%}"), *rows]

    def depths(self) -> list[Row]:
        """Measure BranchGRPO: the authors' depths typed as they are, beside those that they mean."""
        return self.compared("prune_depths, authors' numbers unchanged", "branch_grpo", [OURS], [AUTHORS_DEPTHS])

    def widths(self) -> list[Row]:
        """Measure BranchGRPO: what pruning by width keeps, beside all leaves."""
        rows: list[Row] = []
        for setting in ("keep=best", "keep=best_child", "keep=extremes", "prune_depths=[15, 16, 17, 18]"):
            length, cosine = self.gradients("branch_grpo", [], [f"method.{setting}"])
            rows.append((setting, "length, cosine beside keep=all", f"{length:.3f}, {cosine:.3f}"))
        return rows

    def split_noise(self) -> list[Row]:
        """Measure BranchGRPO: four times the noise at splits."""
        rows, found = [], []
        for size in (1, 4):
            with self.run("branch_grpo", f"method.split_noise={size}") as patient:
                g, seen = gradient(patient), patient.seen[0]
                spread, apart = seen.table("scenes").std(1).mean(), seen.images.std(1).square().mean().sqrt()
                found.append((g.norm(), spread, apart, seen.table("scenes").mean()))
        for name, one, two in zip(("length of the gradient", "std of rewards", "std of pixels", "reward"), *found, strict=True):
            rows.append(("split_noise", f"{name}: formula, code", f"{one:.4g}, {two:.4g}"))
        return rows

    def tail(self) -> list[Row]:
        """Measure MixGRPO-Flash: the tail by transitions and by points, beside the tail in full."""
        pictures, rewards = {}, {}
        for label, settings in {
            "r = 1": ["method.tail=1"],
            "r = 0.4, transitions": [],
            "r = 0.4, points": ["method.tail_count=points"],
            "r = 0.2, transitions": ["method.tail=0.2"],
            "r = 0.2, points": ["method.tail=0.2", "method.tail_count=points"],
        }.items():
            with self.run("mix_grpo_flash", *settings) as patient:
                tree = patient.source.collect(0).tree
                pictures[label], rewards[label] = patient.seen[0].images, patient.seen[0].table("scenes").mean()
                count = len(tree.steps) - patient.config.method.window
            off = rms(pictures[label] - pictures["r = 1"])
            rewards[label] = f"{count} transitions, pictures off by {off:.4f}, reward {rewards[label]:.4f}"
        rows = [("tail_count", label, text) for label, text in rewards.items()]
        lost = [place for place in range(MixGRPO().last_place + 1) if int(max((25 - place - 3) * 0.4, 1)) < 2]
        return [*rows, ("tail_count", "places whose picture the code leaves noisy", f"{lost[0]} to {lost[-1]} of 0 to 20")]

    def pull(self) -> list[Row]:
        """Measure DiffusionNFT: advantages divided by 5 and then clipped at 1, or clipped at 1 as they are."""
        return self.compared("adv_clip (nft)", "nft", ["method.adv_clip=1"], ["method.adv_clip=5"])

    def not_offered(self) -> list[Row]:
        """Measure what no setting gives: times cut to whole thousandths, and noise in the last transition."""
        with self.run("flow_grpo") as patient, torch.no_grad():
            got, model = patient.source.collect(0), patient.parts.model
            velocity, last = batched_velocity(model, got.cond, self.rows), got.tree.steps[-1]
            cut = [velocity(step.x, int(1000 * step.t) / 1000) - step.v for step in got.tree.steps]
            off = [rms(difference) / rms(step.v) for difference, step in zip(cut, got.tree.steps, strict=True)]
            mean, std = patient.config.method.kernel(last.x, last.v, last.t, last.s)
            z = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
            grain = decode(model, mean + float(std) * z, 64) - patient.seen[0].images
        return [
            ("int(1000·t)", "velocity off by, mean over transitions", f"{sum(off) / len(off):.2%}"),
            ("noise in the last transition", "std, pictures off by", f"{float(std):.3f}, {rms(grain):.4f}"),
        ]


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.square().mean().sqrt())


MEASURES = {
    "density": Bench.density,
    "divergence": Bench.divergence,
    "reward_std": Bench.reward_std,
    "weights": Bench.weights,
    "depths": Bench.depths,
    "widths": Bench.widths,
    "split_noise": Bench.split_noise,
    "tail": Bench.tail,
    "pull": Bench.pull,
    "not_offered": Bench.not_offered,
}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2, help="groups that are rolled out")
    parser.add_argument("measures", nargs="*", metavar="NAME", help=f"some of {', '.join(MEASURES)}; default all")
    silence_libraries()
    arguments = parser.parse_args()
    bench = Bench(arguments.prompts)
    print("| difference | measured | value |\n|---|---|---|")
    for name in arguments.measures or MEASURES:
        for row in MEASURES[name](bench):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
