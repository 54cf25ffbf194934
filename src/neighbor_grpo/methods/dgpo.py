"""DGPO (arXiv 2510.08425): preferences between the halves of a group, without a policy of transitions.

    S = sum_i A_i·b·(m_i - m_ref,i) / G  over a whole group, no gradient,   gate = sigmoid(S)
    loss = mean_i( gate·A_i·m_i ) + kl·mean((v - v_ref)^2)

Weight w = gate, which shuts as S falls: a group that ranks as it should stops pulling.  A one-sided clip against `ema`, a copy
of the weights: with rho = exp(m_ema - m), a state with A > 0 and rho > 1 + c, or A < 0 and rho < 1 - c, has no gradient.

    ema <- d·ema + (1 - d)·theta,   d = min(0.001·n, 0.3)  after n iterations

After `draw_after` iterations a copy draws the samples: `sampling` is theta until then and follows as `ema` does afterwards.
A group's states at one time are a row, because S needs all of them; so a micro-batch has at least G states.
Published for SD3.5-M: DPM-Solver with N = 10 and classifier-free guidance of 4.5 in the rollout alone, T = 4 of the first 7
times (GenEval 5), t and eps shared by a group, |A| <= 5, G = 16 to 24, b = 100 (PickScore 10), c = 0.05 (GenEval and OCR
0.01), kl = 1e-3 to 0.02, draw_after = 200 (or 500), a LoRA of rank 64 and alpha 128 at a rate of 3e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.methods.fields import AdvClip, Clip, Kl, Shared, TrainTo
from neighbor_grpo.methods.forward import ForwardProcess, Noised, ema_decay, mean_square
from neighbor_grpo.methods.protocol import Decay, Policy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=STRICT)
class DGPO(ForwardProcess):
    """Implement DGPO.  Defaults: the published recipe for SD3.5."""

    row: ClassVar[Literal["state", "sample", "group"]] = "group"

    name: str = "dgpo"
    train_to: TrainTo = 0.7
    shared: Shared = "pairs"
    kl: Kl = 1e-3
    clip: Clip = 0.05
    adv_clip: AdvClip = 5.0
    b: Annotated[float, Field(gt=0, description="b, sharpness of the group's gate")] = 100.0
    draw_after: Annotated[
        int | None, Field(ge=0, le=10**9, description="iterations after which a lagging copy draws the samples; null = never")
    ] = 200

    @property
    def needs_reference(self) -> bool:
        """Return True: the gate compares with the reference."""
        return True

    @property
    def copies(self) -> Mapping[str, Decay]:
        """Return `ema`, and `sampling` where a copy draws."""
        after = self.draw_after
        if after is None:
            return {"ema": ema_decay}
        return {"ema": ema_decay, "sampling": lambda n: ema_decay(n) if n > after else 0.0}

    @property
    def drawn_by(self) -> str | None:
        """Return `sampling`, which is the trained weights until `draw_after`."""
        return None if self.draw_after is None else "sampling"

    def loss(self, policy: Policy, rows: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each group at one time [R], and the openness of its gate."""
        at = rows.flat()
        v, ref = policy(at.x, at.t), policy.reference(at.x, at.t)
        adv, size = rows.adv.clamp(-self.adv_clip, self.adv_clip), rows.adv.shape
        error = at.matching(v).view(size)  # [R, G]
        reference, lagging = at.matching(ref).view(size), at.matching(policy.lagging("ema", at.x, at.t)).view(size)
        now = error.detach()
        gate = (adv * self.b * (now - reference)).mean(1, keepdim=True).sigmoid()
        rho = (lagging - now).exp()
        cut = ((adv > 0) & (rho > 1 + self.clip)) | ((adv < 0) & (rho < 1 - self.clip))
        distance = mean_square(v - ref).view(size)
        figures = {
            "matching/error": now.mean(),
            "matching/reference": distance.detach().mean(),
            "matching/gate": gate.mean(),
            "ratio/clipped": cut.sum() / (adv != 0).sum().clamp_min(1),
        }
        return (gate * adv * now.where(cut, error) + self.kl * distance).mean(1), figures
