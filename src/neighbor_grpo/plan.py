"""What a configuration comes to, before a model is loaded: counts per iteration and what they are made of."""

from dataclasses import dataclass

import torch

from neighbor_grpo.config import Config
from neighbor_grpo.path import shift_time

LOOKED_AT = 100  # iterations of a run that are tried, spread over it


@dataclass(frozen=True)
class Plan:
    """Means over the run's iterations, of all ranks; a forward is one row through the model."""

    samples: int  # pictures per iteration
    forwards: float  # of the rollouts
    nominal: float  # the same as papers count them, nothing shared
    forward_backwards: float
    updates: float  # optimizer steps

    @property
    def nfe_old(self) -> float:
        """Forwards per sample."""
        return self.forwards / self.samples

    @property
    def nfe_theta(self) -> float:
        """Forward-backwards per sample."""
        return self.forward_backwards / self.samples

    @property
    def evaluations(self) -> float:
        """What an iteration costs, a forward-backward counted as three forwards."""
        return self.forwards + 3 * self.forward_backwards

    def lines(self, config: Config, processes: int, trained: int, frozen: int, latent: int, megabytes: dict) -> list[str]:
        """The plan in words.  trained, frozen: parameters; latent: scalars in one x; megabytes by what they hold."""
        m, p = config.method, config.prompts.per_iteration
        memory = ", ".join(f"{name} {size:,.0f} MB" for name, size in megabytes.items())
        return [
            f"model       {config.model.path}: {frozen + trained:,} parameters, {trained:,} trained "
            f"({'LoRA rank ' + str(config.model.lora.rank) if config.model.lora else 'full fine-tune'})",
            f"iteration   {p} prompts x {m.group_size} samples = {self.samples} pictures, {p // processes} groups on each "
            f"of {processes} process{'es' if processes > 1 else ''}",
            f"rollout     {m.name}: {self.forwards:g} forwards, NFE_old {self.nfe_old:.4g} a sample (as papers count: "
            f"{self.nominal / self.samples:.4g})",
            f"update      {self.forward_backwards:g} forward-backwards, NFE_theta {self.nfe_theta:.3g} a sample, in "
            f"{self.updates:g} optimizer steps",
            f"run         {config.iterations} iterations, {config.iterations * self.samples:,} pictures, "
            f"{round(config.iterations * self.updates):,} optimizer steps, reward {', '.join(config.reward.train)}",
            f"memory      {memory} on each process, activations apart",
            f"latent      D = {latent:,}",
        ]


def plan(config: Config) -> Plan:
    """Counted, not calculated: one group of the method at work on latents of one number, where the velocity is zero."""
    p, looked = config.prompts.per_iteration, range(0, config.iterations, -(-config.iterations // LOOKED_AT))
    columns = zip(*(_work(config, n) for n in looked), strict=True)
    forwards, nominal, backwards, steps = (sum(column) / len(looked) for column in columns)
    return Plan(p * config.method.group_size, p * forwards, p * nominal, p * backwards, steps)


def affordable(config: Config, evaluations: float) -> int:
    """How many iterations, from the first on, cost no more than so many evaluations on all ranks; a window's place counts."""
    spent = []
    for n in range(LOOKED_AT * 10):
        forwards, _, backwards, _ = _work(config, n)
        spent.append(config.prompts.per_iteration * (forwards + 3 * backwards))
        evaluations -= spent[-1]
        if evaluations < 0:
            return n
    return len(spent) + int(evaluations * len(spent) / sum(spent))


def _work(config: Config, iteration: int) -> tuple[int, int, int, int]:
    """Of one group: forwards, as papers count them, forward-backwards, optimizer steps."""
    m, rng = config.method, torch.Generator().manual_seed(iteration)
    times = shift_time(torch.linspace(1, 0, m.num_steps + 1, dtype=torch.float64), 3.0).tolist()
    tree = m.rollout(lambda x, t: torch.zeros_like(x), lambda n: torch.randn(1, n, 1, generator=rng), times, iteration)
    rewards = torch.randn(1, m.group_size, generator=rng)
    updates = m.updates(tree, m.credit(tree, rewards, rewards), rng, iteration)
    return tree.evaluations, tree.nominal_evaluations, sum(map(len, updates)), len(updates)
