"""DiffusionNFT (arXiv 2509.16117): a quadratic about the velocity that drew the samples, pulled by good and bad samples alike.

    v+ = beta·v + (1 - beta)·v_old,   v- = (1 + beta)·v_old - beta·v
    L+- = mean(d^2) / sg(max(mean|d|, 1e-5)),   d = x_t - t·v+- - x0
    loss = (C/beta)·( r·L+ + (1 - r)·L- ) + kl·mean((v - v_ref)^2),    r = (1 + clamp(A/C, ±1)) / 2

Weight w = t / mean|e|.  The loss is  C/(2·beta)·(L+ + L-) + C/(2·beta)·clamp(A/C, ±1)·(L+ - L-):  the first half holds v at
v_old, the second moves it, so C says how strong the pull is against the restraint, and 1/beta how far it leads.

The samples are drawn by a copy of the weights that lags behind,  old <- d·old + (1 - d)·theta  after n iterations:

    decay 0   d = 0: on policy; with one optimizer step per rollout v_old = v, and no copy is kept
    decay 1   d = min(0.001·n, 0.5)
    decay 2   d = 0 for n < 75, then min(0.0075·(n - 75), 0.999)
    between 0 and 1: d itself, from the first iteration on

Published for SD3.5-M: DPM-Solver++(2M) with N = 10, T = 9 of the 10 times at random, G = 24, 48 prompts, beta = 1 (0.1 for OCR
and several rewards), C = 5, kl = 1e-4, decay 1 (2 for OCR), std of the iteration, no guidance, a LoRA at a rate of 3e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.methods.fields import Kl, Pairs
from neighbor_grpo.methods.forward import ForwardProcess, Noised, mean_square, normalised
from neighbor_grpo.methods.protocol import Decay, Policy

if TYPE_CHECKING:
    from torch import Tensor

DECAYS: dict[float, Decay] = {
    0: lambda n: 0.0,
    1: lambda n: min(0.001 * n, 0.5),
    2: lambda n: min(max(0.0075 * (n - 75), 0.0), 0.999),
}


@dataclass(frozen=True, config=STRICT)
class NFT(ForwardProcess):
    """Implement DiffusionNFT.  Defaults: the published recipe for SD3.5."""

    name: str = "nft"
    num_train_steps: Pairs = 9
    kl: Kl = 1e-4
    beta: Annotated[float, Field(gt=0, description="beta, inverse length of the pull")] = 1.0
    adv_clip: Annotated[float, Field(gt=0, description="C, advantage of the full pull")] = 5.0
    decay: Annotated[
        Annotated[int, Field(ge=0, le=2)] | Annotated[float, Field(gt=0, lt=1)],
        Field(description="how the copy that draws lags: 0 = not at all, 1 = d to 0.5, 2 = d to 0.999, a fraction = d itself"),
    ] = 1

    @property
    def copies(self) -> Mapping[str, Decay]:
        """Return `old`, which draws, unless the trained weights are the same."""
        d = self.decay
        return {"old": DECAYS.get(d, lambda n: d)} if d or self.updates_per_rollout > 1 else {}

    @property
    def drawn_by(self) -> str | None:
        """Return `old` where it is another than the trained weights when a rollout starts."""
        return "old" if self.decay else None

    def loss(self, policy: Policy, rows: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row [R], and the errors of the regression."""
        at = rows.flat()
        v = policy(at.x, at.t)
        old = self.old(policy, at, v)
        r = (1 + (at.adv / self.adv_clip).clamp(-1, 1)) / 2
        moved = self.beta * (v - old)
        positive, negative = normalised(at.x0_error(old + moved)), normalised(at.x0_error(old - moved))
        figures = {"matching/error": at.matching(v.detach()).mean(), "matching/old": mean_square(v.detach() - old).mean()}
        pull = self.adv_clip / self.beta * (r * positive + (1 - r) * negative)
        return pull + self.anchor(policy, at, v, figures), figures
