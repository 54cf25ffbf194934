"""A flow whose velocity is known in closed form, and one tensor to learn: data N(mu, 0.5^2) in D dimensions."""

import torch

from neighbor_grpo.flow.path import shift_time
from neighbor_grpo.flow.streams import Iteration

SCALE = 0.5
LATENT = (3, 4)


def velocity(mu, x, t):
    """mu [*latent], x [..., *latent], t a float or [R]."""
    if isinstance(t, torch.Tensor) and t.ndim:
        t = t.reshape(-1, *(1,) * mu.ndim)
    variance = (1 - t) ** 2 * SCALE**2 + t**2
    x0 = mu + (1 - t) * SCALE**2 / variance * (x - (1 - t) * mu)
    return t / variance * (x - (1 - t) * mu) - x0


def noise_of(generator, prompts):
    return lambda n: torch.randn(prompts, n, *LATENT, generator=generator)


def grid(method):
    """A grid of the method's length, denser at the noise."""
    return shift_time(torch.linspace(1, 0, method.num_steps + 1, dtype=torch.float64), 3.0).tolist()


class ToyPolicy:
    """The toy as a loss sees it: mu is trained, mu_ref is the reference, and the lagging copies have values of their own."""

    def __init__(self, mu, mu_ref=None, copies=None):
        self.mu, self.mu_ref, self.copies = mu, mu.detach() if mu_ref is None else mu_ref, copies or {}

    def __call__(self, x, t):
        return velocity(self.mu, x, t)

    def reference(self, x, t):
        return velocity(self.mu_ref, x, t)

    def lagging(self, name, x, t):
        return velocity(self.copies[name], x, t)


def rollout(method, mu, seed=0, prompts=2, iteration=0):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        noise = noise_of(generator, prompts)
        return method.rollout(lambda x, t: velocity(mu, x, t), noise, grid(method), Iteration(iteration))


def updates(method, tree, rewards, seed=3, iteration=0):
    adv = method.credit(tree, rewards, rewards)
    generators = [torch.Generator().manual_seed(seed)] * len(adv)
    return method.updates(tree, adv, generators, Iteration(iteration))


def some_rewards(tree, seed=5):
    return torch.randn(tree.leaves.shape[:2], generator=torch.Generator().manual_seed(seed))


def copies_of(method, mu):
    return {name: mu.detach().clone() for name in method.copies}


def follow(method, copies, mu, iterations):
    """Move the lagging copies as a run does after so many iterations."""
    for name, decay in method.copies.items():
        copies[name].lerp_(mu.detach(), 1 - decay(iterations))


def loss_at(method, mu, rows, mu_ref=None, copies=None):
    """The loss where the lagging copies are what is trained, unless they are given."""
    return method.loss(ToyPolicy(mu, mu_ref, copies_of(method, mu) if copies is None else copies), rows)


def gradient(method, mu, decisions, micro_batch=10_000):
    """Of the mean loss over rows, accumulated over micro-batches."""
    mu = mu.clone().requires_grad_()
    for rows in decisions.split(micro_batch):
        loss, _ = loss_at(method, mu, rows)
        (loss.sum() / len(decisions)).backward()
    return mu.grad
