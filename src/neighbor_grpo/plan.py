"""What a configuration comes to, before anything runs: counts per iteration and what they are made of."""

from dataclasses import dataclass

from neighbor_grpo.config import Config
from neighbor_grpo.solvers import EVALUATIONS


@dataclass(frozen=True)
class Plan:
    samples: int  # pictures per iteration, all ranks
    forwards: int  # model evaluations of the rollouts
    forward_backwards: int
    updates: int  # optimizer steps per iteration
    nfe_old: float  # evaluations per sample
    nfe_theta: float  # forward-backwards per sample

    def lines(self, config: Config, processes: int, trained: int, frozen: int, latent: int, megabytes: dict) -> list[str]:
        """The plan in words.  trained, frozen: parameters; latent: scalars in one x; megabytes by what they hold."""
        m, p = config.method, config.prompts.per_iteration
        memory = ", ".join(f"{name} {size:,.0f} MB" for name, size in megabytes.items())
        return [
            f"model       {config.model.path}: {frozen + trained:,} parameters, {trained:,} trained "
            f"({'LoRA rank ' + str(config.model.lora.rank) if config.model.lora else 'full fine-tune'})",
            f"iteration   {p} prompts x {m.group_size} samples = {self.samples} pictures, {p // processes} groups on each "
            f"of {processes} process{'es' if processes > 1 else ''}",
            f"rollout     {self.forwards} forwards (NFE_old {self.nfe_old:g} a sample), {m.num_steps} steps of {m.solver}",
            f"update      {self.forward_backwards} forward-backwards (NFE_theta {self.nfe_theta:.3g} a sample) in "
            f"{self.updates} optimizer steps",
            f"run         {config.iterations} iterations, {config.iterations * self.samples:,} pictures, "
            f"{config.iterations * self.updates:,} optimizer steps, reward {', '.join(config.rewards)}",
            f"memory      {memory} on each process, activations apart",
            f"latent      D = {latent:,}",
        ]


def plan(config: Config) -> Plan:
    """G·N forwards and B·K forward-backwards for each of P prompts."""
    m, p = config.method, config.prompts.per_iteration
    samples = p * m.group_size
    forwards = samples * m.num_steps * EVALUATIONS[m.solver]
    backwards = p * m.num_anchors * m.num_train_steps
    return Plan(samples, forwards, backwards, m.num_updates, forwards / samples, backwards / samples)
