"""The checks of the rewards: range, noise, order, sign, and spread within groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import pearsonr
from torch import Tensor

from neighbor_grpo.methods.advantage import has_spread
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.run.findings import Finding, Verdict
from neighbor_grpo.training.doctor.patient import Patient, Seen
from neighbor_grpo.training.doctor.statistics import match
from neighbor_grpo.training.probe import probe

PROMPTS, PICTURES = 8, 4  # that are scored with each other's prompts; 8! assignments
BATCHES = 8  # iterations that are drawn at most to find so many prompts
CONFIDENT, CERTAIN = 0.01, 0.001  # p-values: for what should be there, for what should not
SATURATED = 0.9  # share of pictures with one and the same extreme score
NOISY, NOISE = 0.05, 0.5  # shares of the variance within groups: a warning; more noise than signal
EIGHT_BITS = 1 / 255  # a smaller difference of pictures cannot be seen in a file
KEPT = 0.1  # share of the spread at sigma = 1; the prompts of a batch then matter ten times as much as its noise
OPPOSED = -0.5  # correlation with a watched reward: it explains a quarter of the variance, with the wrong sign


@dataclass(frozen=True)
class Scored:
    """Hold what the checks of one trained reward need."""

    name: str
    sign: float  # of its weight
    rewards: RewardSet  # this one alone; nothing is recorded
    seen: Sequence[Seen]

    @property
    def table(self) -> Tensor:
        """Return all scores [P, G], NaN without a score."""
        return torch.cat([some.table(self.name) for some in self.seen])

    def again(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Score pictures [P, G, ...] in one call.  [P, G]"""
        return self.rewards.score(images, prompts)[self.name].values.view(images.shape[:2])

    @property
    def within(self) -> float:
        """Return the variance of the scores within groups."""
        deviation = self.table - self.table.nanmean(-1, keepdim=True)
        return float(deviation.square().nanmean())


def reward_findings(patient: Patient) -> list[Finding]:
    """Draw some prompts, and check each trained reward on their pictures."""
    for n in range(min(BATCHES, patient.config.iterations)):
        patient.experience(n)
        if len({prompt.text for some in patient.seen for prompt in some.prompts}) >= PROMPTS:
            break
    found: list[Finding] = []
    for name, weight in patient.config.reward.train.items() if patient.seen else ():
        rewards = RewardSet({name: patient.recorder.scorers[name]})
        one = Scored(name, float(np.sign(weight)), rewards, tuple(patient.seen))
        failed = _failed(one, patient.config.reward.max_failed)
        range_ = _range(one)
        found += [failed, range_]
        if range_.verdict != "error":
            noise = _noise(one)
            found += [noise, *_order(one, noise.value or 0.0), *_opposed(patient, one), *_spread(patient, one)]
    return found


def teaches(patient: Patient) -> bool:
    """Return whether a reward differs within any group that was seen."""
    return any(bool(has_spread(some.table(name)).any()) for some in patient.seen for name in some.scores)


def _failed(one: Scored, most: float) -> Finding:
    share = float(one.table.isnan().double().mean())
    verdict: Verdict = "ok" if share == 0 else "warning" if share <= most else "error"
    reasons = [failure.reason for some in one.seen for failure in some.scores[one.name].failures]
    text = f"{one.name} scores {1 - share:.0%} of the pictures" + (
        f", the first failure: {reasons[0][:300]}" if reasons else ""
    )
    return Finding("scorer_failures", verdict, text, share, most)


def _range(one: Scored) -> Finding:
    """Check that the scores differ, and are not nearly all at an end of their range."""
    values = one.table[one.table.isfinite()].numpy()
    if not len(values) or values.min() == values.max():
        what = f"{values[0]:g}" if len(values) else "missing"
        return Finding("reward_range", "error", f"{one.name} is {what} for all {one.table.numel()} pictures", 0.0, 0.0)
    ends = {"lowest": float((values == values.min()).mean()), "highest": float((values == values.max()).mean())}
    end = max(ends, key=ends.__getitem__)
    text = f"{one.name} lies between {values.min():.4g} and {values.max():.4g}"
    if ends[end] > SATURATED:
        text += f", and {ends[end]:.0%} of the pictures have the {end} score"
        return Finding("reward_range", "warning", text, ends[end], SATURATED)
    return Finding("reward_range", "ok", text, ends[end], SATURATED)


def _noise(one: Scored) -> Finding:
    """Score the same calls again.  Half the mean square difference is the variance of the noise."""
    again = torch.cat([one.again(some.images, some.prompts) for some in one.seen])
    share = float((again - one.table).square().nanmean()) / 2 / (one.within or 1.0)
    text = f"{one.name}: {share:.2g} of the variance within groups is noise of the reward itself"
    verdict: Verdict = "error" if share > NOISE else "warning" if share > NOISY else "ok"
    return Finding("reward_noise", verdict, text, share, NOISY)


def _order(one: Scored, noise: float) -> list[Finding]:
    """Check that a score depends on its own picture and prompt, whatever stands beside them."""
    if noise > NOISE:
        return []
    images, prompts = _distinct(one.seen)
    straight = one.again(images, prompts)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(images.shape[1]))
    alone = torch.empty_like(straight)
    for n, prompt in enumerate(prompts):
        alone[n, shuffled] = one.again(images[n : n + 1, shuffled], [prompt])[0]
    share = float((alone - straight).square().nanmean()) / 2 / (one.within or 1.0)
    if share > NOISY + 3 * noise:
        text = f"{one.name} gives other scores to the same pictures when each prompt is scored by itself, in another order"
        return [Finding("prompt_order", "error", text, share, NOISY + 3 * noise)]
    return [_matched(one, images[:, :PICTURES], prompts)]


def _distinct(seen: Sequence[Seen]) -> tuple[Tensor, list[Prompt]]:
    """Return the pictures of the first PROMPTS prompts with different texts."""
    chosen: dict[str, tuple[Tensor, Prompt]] = {}
    for some in seen:
        for images, prompt in zip(some.images, some.prompts, strict=True):
            chosen.setdefault(prompt.text, (images, prompt))
    first = list(chosen.values())[:PROMPTS]
    return torch.stack([images for images, _ in first]), [prompt for _, prompt in first]


def _matched(one: Scored, images: Tensor, prompts: list[Prompt]) -> Finding:
    """Score every picture with every prompt: do pictures fit their own prompts best?"""
    n = len(prompts)
    scores = torch.empty(n, n, images.shape[1], dtype=torch.float64)
    for k in range(n):  # all prompts in every call, each beside other pictures
        rolled = [prompts[(i + k) % n] for i in range(n)]
        scores[torch.arange(n), (torch.arange(n) + k) % n] = one.again(images, rolled)
    result = match(one.sign * scores.nan_to_num(float(scores.nanmean())).numpy())
    if not result.depends:
        return Finding("prompt_order", "note", f"{one.name} does not depend on how a picture fits its prompt", None, None)
    if result.opposite <= CERTAIN:
        text = f"pictures score lower with their own prompts than with others, by {one.name} and its weight"
        return Finding("reward_sign", "error", text, result.opposite, CERTAIN)
    if result.own <= CONFIDENT:
        text = f"{one.name} scores pictures higher with their own prompts (p = {result.own:.2g})"
        return Finding("prompt_order", "ok", text, result.own, CONFIDENT)
    text = f"{one.name} does not score pictures higher with their own prompts than with others (p = {result.own:.2g})"
    if result.other <= CERTAIN:
        return Finding("prompt_order", "error", f"{text}, but with those of other pictures", result.own, CONFIDENT)
    enough = n >= PROMPTS - 2  # 720 assignments can show a p-value below CONFIDENT
    return Finding("prompt_order", "warning" if enough else "note", text, result.own, CONFIDENT)


def _opposed(patient: Patient, one: Scored) -> list[Finding]:
    """Correlate the reward with each watched one within groups."""
    watched = {k: v for k, v in patient.parts.evaluator.rewards.scorers.items() if k not in patient.config.reward.train}
    images, prompts = torch.cat([some.images for some in one.seen]), [p for some in one.seen for p in some.prompts]
    mine, found = one.sign * one.table, []
    for name, scorer in watched.items():
        theirs = RewardSet({name: scorer}).score(images, prompts)[name].values.view(images.shape[:2])
        a, b = ((x - x.nanmean(-1, keepdim=True)).flatten().numpy() for x in (mine, theirs))
        both = np.isfinite(a) & np.isfinite(b)
        if not (a[both].any() and b[both].any()):
            continue
        r, p_value = pearsonr(a[both], b[both])
        if r < 0 and p_value < CERTAIN:
            text = f"training on {one.name} lowers the watched {name}: their correlation within groups is {r:.2f}"
            found.append(Finding("reward_sign", "warning" if r < OPPOSED else "note", text, float(r), OPPOSED))
    return found


def _spread(patient: Patient, one: Scored) -> list[Finding]:
    """Check the groups without spread, and the size of the neighbourhood."""
    spread = has_spread(one.table)
    flat = float((~spread).double().mean())
    small = _neighbourhood(patient, one)
    if flat == 1:
        text = f"the {one.name} scores are the same within each of {len(spread)} groups, so nothing is learned from them"
        return [Finding("spread", "error", text, flat, 0.5)]
    if small:
        return [small]
    text = f"{one.name} has a spread of {one.within**0.5:.3g} within groups; {flat:.0%} of the groups have none"
    return [Finding("spread", "warning" if flat > 0.5 else "ok", text, flat, 0.5)]


def _neighbourhood(patient: Patient, one: Scored) -> Finding | None:
    """Compare the pictures of a group with each other, and their spread with that of independent noises."""
    images = torch.cat([some.images for some in one.seen])[:PROMPTS].flatten(2).float()
    distance = float((images - images.mean(1, keepdim=True)).square().mean().sqrt()) * 2**0.5
    if distance < EIGHT_BITS:
        text = f"the pictures of a group differ by {distance:.2g} (root mean square), less than one step of 8 bits"
        return Finding("spread", "error", text, distance, EIGHT_BITS)
    method = patient.config.method
    if not isinstance(method, Neighbor):
        return None
    parts, p = patient.parts, patient.config.prompts
    few = p.model_copy(update={"per_iteration": min(4, p.per_iteration)})
    config = patient.config.model_copy(update={"prompts": few})
    large = method.sigma >= 0.5
    rows = probe(
        parts.model, parts.texts, parts.prompts, one.rewards, config, (method.sigma, method.sigma / 4 if large else 1.0)
    )
    here, other = (row.spreads[one.name] for row in rows)
    if large and other >= SATURATED * here > 0:
        text = f"{one.name} differs at a quarter of method.sigma = {method.sigma:g} by {other / here:.0%} of what it does there"
        return Finding("sigma_large", "warning", text, other / here, SATURATED)
    if large or here >= KEPT * other:
        return None
    text = f"at method.sigma = {method.sigma:g} the spread of {one.name} is {here / other:.1%} of that of independent noises"
    return Finding("spread", "warning", text, here / other, KEPT)
