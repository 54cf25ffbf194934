"""Three methods of foreign kinds, small on purpose: what the seams must hold without a branch anywhere in the pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass as record
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.path import interpolate
from neighbor_grpo.flow.solvers import euler
from neighbor_grpo.flow.streams import DRAW, Iteration
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.methods.tree import Tree, finish, grow


@record(frozen=True)
class Samples(Rows):
    """Hold noised samples: x = (1 - t)·x0 + t·eps with the target u = eps - x0, and the sample's advantage."""

    u: torch.Tensor  # [R, *latent]
    adv: torch.Tensor  # [R]


@dataclass(frozen=True, config=STRICT)
class ForwardProcess(Method):
    """Regress v on  v_old + clamp(A, ±1)·(u - v_old)  at noised samples; the lagging copy `old` draws them."""

    name: str = "forward_process"
    group_size: int = 8
    num_steps: int = 6
    copies: ClassVar[Mapping[str, Any]] = {"old": lambda n: min(0.1 * n, 0.5)}
    drawn_by: ClassVar[str] = "old"

    def rollout(self, velocity, noise, times, iteration):
        return finish(Tree(noise(self.group_size)), velocity, times, "dpmpp_2m")  # only the leaves are kept

    def updates(self, tree, adv, generators, iteration):
        return [Samples.cat([self._row(tree.leaves[p, i], adv[p, i], p, generators[p]) for p, i in adv.isfinite().nonzero()])]

    def _row(self, x0, adv, p, generator):
        t, eps = float(torch.rand((), generator=generator)), torch.randn(x0.shape, generator=generator).to(x0)
        return Samples.row(prompt=int(p), t=t, x=interpolate(x0, eps, t), u=eps - x0, adv=adv)

    def loss(self, policy, rows):
        old = policy.lagging("old", rows.x, rows.t)
        pull = rows.adv.clamp(-1, 1).reshape(-1, *(1,) * (old.ndim - 1)) * (rows.u - old)
        error = policy(rows.x, rows.t) - (old + pull)
        return error.square().flatten(1).mean(1), {"pull": pull.square().mean().sqrt(), "max/lag": error.detach().abs().max()}


@record(frozen=True)
class Pairs(Rows):
    """Hold the chosen and the rejected sample of a prompt at the same t and eps: x [R, 2, *latent]."""

    u: torch.Tensor  # [R, 2, *latent]

    @property
    def states(self):
        return 2


@dataclass(frozen=True, config=STRICT)
class PairsFromFile(Method):
    """Diffusion-DPO for flows over pairs of latents in a file:  -log sigmoid(-(beta/2)·Delta)."""

    name: str = "pairs_from_file"
    group_size: int = 2
    num_steps: int = 6
    beta: float = 5.0
    pairs: str = ""
    needs_reference: ClassVar[bool] = True

    def source(self, parts):
        return PairFile(Path(self.pairs), parts)

    def rollout(self, velocity, noise, times, iteration):
        return Tree(noise(2))  # stands for the pair in plan and estimate: nothing is rolled out

    def updates(self, tree, adv, generators, iteration):
        rows = []
        for p, (x0, generator) in enumerate(zip(tree.leaves, generators, strict=True)):
            t, eps = float(torch.rand((), generator=generator)), torch.randn(x0[:1].shape, generator=generator).to(x0)
            rows.append(Pairs.row(prompt=p, t=t, x=interpolate(x0, eps, t), u=eps - x0))
        return [Pairs.cat(rows)]

    def loss(self, policy, rows):
        x, t, u = rows.x.flatten(0, 1), rows.t.repeat_interleave(2), rows.u.flatten(0, 1)
        better = [(v - u).square().flatten(1).mean(1) for v in (policy(x, t), policy.reference(x, t))]
        delta = (better[0] - better[1]).view(-1, 2).diff(dim=1)[:, 0].neg()  # of the chosen minus of the rejected
        return -F.logsigmoid(-self.beta / 2 * delta), {"accuracy": (delta.detach() < 0).float().mean()}


class PairFile:
    """Make experience from a file of latents, one pair for each prompt: chosen and rejected [M, *latent]."""

    def __init__(self, file: Path, parts) -> None:
        stored = load_file(file)
        self.pairs, self.parts = torch.stack([stored["chosen"], stored["rejected"]], 1), parts

    def experience(self, n: int):
        from neighbor_grpo.training.experience import Experience

        method, slots = self.parts.config.method, self.parts.slots
        numbers = [(n * self.parts.config.prompts.per_iteration + slot) % len(self.pairs) for slot in slots]
        iteration = Iteration(n, self.parts.config.seed)
        draws = [iteration.of_slot(DRAW, slot) for slot in slots]
        updates = method.updates(Tree(self.pairs[numbers]), torch.zeros(len(slots), 2), draws, iteration)
        return Experience(self.parts.conditioning(numbers), updates, {})


@dataclass(frozen=True, config=STRICT)
class Chained(Method):
    """Follow the gradient of a reward of the latents, -||x0 - goal||^2, through all Euler steps from the noise."""

    name: str = "chained"
    group_size: int = 4
    num_steps: int = 4
    goal: float = 1.5

    def rollout(self, velocity, noise, times, iteration):
        return grow(Tree(noise(self.group_size)), velocity, times, "euler")

    def updates(self, tree, adv, generators, iteration):
        roots = [(p, x) for p, group in enumerate(tree.root) for x in group]
        return [Rows.cat([Rows.row(prompt=p, t=1.0, x=x) for p, x in roots])]

    def loss(self, policy, rows):
        x, times = rows.x, [1 - k / self.num_steps for k in range(self.num_steps + 1)]
        for t, s in pairwise(times):
            x = euler(x, policy(x, t), t, s)
        return (x - self.goal).square().flatten(1).mean(1), {"max/norm": x.detach().abs().max()}


FOREIGN = (ForwardProcess, PairsFromFile, Chained)
