"""A flow whose velocity is known in closed form, and one tensor to learn: data N(mu, 0.5^2) in D dimensions."""

import torch

SCALE = 0.5
LATENT = (3, 4)
TIMES = [1.0, 0.97, 0.92, 0.85, 0.75, 0.6, 0.4, 0.2, 0.0]


def velocity(mu, x, t):
    """mu [*latent], x [..., *latent], t a float or [R]."""
    if isinstance(t, torch.Tensor) and t.ndim:
        t = t.reshape(-1, *(1,) * mu.ndim)
    variance = (1 - t) ** 2 * SCALE**2 + t**2
    x0 = mu + (1 - t) * SCALE**2 / variance * (x - (1 - t) * mu)
    return t / variance * (x - (1 - t) * mu) - x0


def noise_of(generator, prompts):
    return lambda n: torch.randn(prompts, n, *LATENT, generator=generator)


def rollout(method, mu, seed=0, prompts=2):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        return method.rollout(lambda x, t: velocity(mu, x, t), noise_of(generator, prompts), TIMES, 0)


def gradient(method, mu, decisions, micro_batch=10_000):
    """Of the mean loss over rows, accumulated over micro-batches."""
    mu = mu.clone().requires_grad_()
    for rows in decisions.split(micro_batch):
        loss, _ = method.loss(velocity(mu, rows.x, rows.t), rows)
        (loss.sum() / len(decisions)).backward()
    return mu.grad
