"""Forward-process methods against the formulas of their papers, computed beside in fp64."""

import pytest
import torch
from toy import LATENT, velocity

from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.awm import AWM
from neighbor_grpo.methods.dgpo import DGPO
from neighbor_grpo.methods.forward import Noised, normalised
from neighbor_grpo.methods.nft import NFT
from neighbor_grpo.methods.tree import Tree
from neighbor_grpo.methods.v_grpo import VGRPO

MU = torch.linspace(-1, 1, 12).reshape(LATENT)
D = MU.numel()


class Table:
    """A policy whose velocities are given: v with its gradient, the reference, and the copies."""

    def __init__(self, v, reference, **copies):
        self.v, self.ref, self.copies = v, reference, copies

    def __call__(self, x, t):
        return self.v

    def reference(self, x, t):
        return self.ref

    def lagging(self, name, x, t):
        return self.copies[name]


def drawn(rows=4, states=3, seed=0):
    """Noised samples of random numbers, and their u [R·S, *latent] in fp64."""
    rng = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, rows, states, *LATENT, generator=rng).unbind()
    t = 0.05 + 0.9 * torch.rand(rows, states, generator=rng)
    x = (1 - t[..., None, None]) * x0 + t[..., None, None] * eps
    adv = 2 * torch.randn(rows, states, generator=rng)
    return Noised(torch.zeros(rows, dtype=torch.long), t, x, x0, adv), (eps - x0).flatten(0, 1).double()


def near(u, size, seed):
    """Velocities about u, in fp32."""
    return (u + size * torch.randn(u.shape, generator=torch.Generator().manual_seed(seed), dtype=u.dtype)).float()


def mean(x):
    return x.flatten(1).mean(1)


def with_gradient(method, rows, v, ref, **copies):
    """The loss [R], and the gradient of its sum in v."""
    v = v.clone().requires_grad_()
    loss, figures = method.loss(Table(v, ref, **copies), rows)
    loss.sum().backward()
    return loss.detach().double(), v.grad.double(), figures


# ---------------------------------------------------------------- the common gradient

WEIGHTS = {  # w(t, e, m) of the common gradient, and what A is multiplied by
    "nft": (NFT(kl=0.0, adv_clip=9.0), lambda t, e, m: t / mean(e.abs())),
    "v_grpo": (VGRPO(adv_soft=1e6, num_train_steps=3), lambda t, e, m: t / mean(e.abs()) / 3),
    "awm": (AWM(kl=0.0, mu=0.0, adv_clip=9.0), lambda t, e, m: t * m**-0.75 / 9),
    "awm, plain": (AWM(kl=0.0, mu=0.0, adv_clip=9.0, p=1.0, time_power=0), lambda t, e, m: 1 / (9 * torch.ones_like(t))),
    "dgpo": (DGPO(kl=0.0, adv_clip=9.0), lambda t, e, m: 0.5 / (3 * torch.ones_like(t))),  # sigmoid(0), mean over a group
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_gradient_where_the_policy_is_the_old_one(name):
    """g = (2/D)·A·w·e, and finite differences of the same sum along a direction."""
    method, weight = WEIGHTS[name]
    rows, u = drawn()
    if name == "v_grpo":  # one advantage a sample
        rows = Noised(rows.prompt, rows.t, rows.x, rows.x0, rows.adv[:, :1].expand(-1, 3))
    v = near(u, 0.7, 1)
    _, g, _ = with_gradient(method, rows, v, v, old=v, ema=v)
    e, t, adv = v.double() - u, rows.t.flatten().double(), rows.adv.flatten().double()
    expected = (2 / D) * (adv * weight(t, e, mean(e.square())))[:, None, None] * e
    torch.testing.assert_close(g, expected, rtol=2e-5, atol=1e-7)
    if name == "dgpo":
        return  # its gate has no gradient, so differences of the loss are not it
    along, h = near(torch.zeros_like(u), 1, 2).double(), 1e-2
    sums = [value_at(method, rows, u, v.double() + sign * h * along, v.double()) for sign in (1, -1)]
    assert float(sums[0] - sums[1]) / (2 * h) == pytest.approx(float((expected * along).sum()), rel=3e-3)


def value_at(method, rows, u, v, old):
    """The sum of the loss in fp64 at v, written anew from the papers; denominators are those at `old`, where mean|d| stays."""
    t, adv = rows.t.flatten().double(), rows.adv.flatten().double()
    if isinstance(method, AWM):
        ell = lambda v: -(t**method.time_power) / method.p * mean((v - u).square()).pow(method.p)  # noqa: E731
        return -((adv / 9) * (ell(v) - ell(old)).exp()).sum()
    size = t * mean((old - u).abs())
    scaled = lambda v: t**2 * mean((v - u).square()) / size  # noqa: E731
    if isinstance(method, NFT):
        r, b, c = (1 + adv / 9) / 2, method.beta, 9
        return (c / b * (r * scaled(b * v + (1 - b) * old) + (1 - r) * scaled((1 + b) * old - b * v))).sum()
    ratio = (scaled(old) - scaled(v)).view(-1, 3).mean(1).exp()
    return -(adv.view(-1, 3)[:, 0] * ratio).sum()


# ---------------------------------------------------------------- whole losses, away from the old policy


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft_is_its_formula_and_its_split(beta):
    """loss = C/(2b)·(L+ + L-) + C/(2b)·q·(L+ - L-) + kl·mean((v - v_ref)^2)."""
    method = NFT(beta=beta, kl=0.3, adv_clip=2.0)
    rows, u = drawn(states=1)
    v, old, ref = (near(u, 0.7, seed) for seed in (1, 2, 3))
    loss, _, figures = with_gradient(method, rows, v, ref, old=old)
    t, q = rows.t.flatten().double(), (rows.adv.flatten().double() / 2).clamp(-1, 1)
    sides = []
    for side in (beta * v + (1 - beta) * old, (1 + beta) * old - beta * v):
        e = side.double() - u
        sides.append(t * mean(e.square()) / mean(e.abs()))
    positive, negative = sides
    expected = 1 / beta * (positive + negative) + 1 / beta * q * (positive - negative)
    apart = mean((v - ref).double().square())
    torch.testing.assert_close(loss, expected + 0.3 * apart, rtol=1e-5, atol=1e-6)
    assert float(figures["matching/reference"]) == pytest.approx(float(apart.mean()), rel=1e-5)
    assert float(figures["matching/old"]) == pytest.approx(float(mean((v - old).double().square()).mean()), rel=1e-5)
    assert float(figures["matching/error"]) == pytest.approx(float(mean((v.double() - u).square()).mean()), rel=1e-5)


def test_awm_is_its_formula():
    method = AWM(kl=0.2, mu=0.5, adv_clip=2.0, clip=0.01, updates_per_rollout=2)
    rows, u = drawn(states=1)
    v, old, ref, ema = (near(u, size, 1) for size in (0.7, 0.72, 0.5, 0.6))
    loss, _, figures = with_gradient(method, rows, v, ref, old=old, ema=ema)
    t, adv = rows.t.flatten().double(), (rows.adv.flatten().double() / 2).clamp(-1, 1)

    def ell(v):
        return -t / 0.25 * ((mean((v.double() - u).square()) + 1e-10) ** 0.25 - 1e-10**0.25)

    rho = (ell(v) - ell(old)).exp()
    assert ((rho - 1).abs() > 0.01).any()
    expected = torch.maximum(-adv * rho, -adv * rho.clamp(0.99, 1.01))
    expected = expected + 0.2 * mean((v - ref).double().square()) + 0.5 * mean((v - ema).double().square())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert float(figures["max/ratio/log_max"]) == pytest.approx(float(rho.log().abs().max()), rel=1e-4)


def test_v_grpo_is_its_formula():
    method = VGRPO(num_train_steps=3, clip=0.01, kappa=0.3, kl=0.2, adv_soft=1.5, updates_per_rollout=2)
    rows, u = drawn()
    rows = Noised(rows.prompt, rows.t, rows.x, rows.x0, rows.adv[:, :1].expand(-1, 3))
    v, old, ref = (near(u, size, 1) for size in (0.7, 0.72, 0.5))
    loss, _, _ = with_gradient(method, rows, v, ref, old=old)
    t, a = rows.t.flatten().double(), 1.5 * (rows.adv[:, 0].double() / 1.5).tanh()
    scaled = lambda v: (t * mean((v.double() - u).square()) / mean((v.double() - u).abs())).view(4, 3)  # noqa: E731
    rho = (scaled(old) - scaled(v)).mean(1).exp()
    restraint = 0.3 * t**2 * mean((v - old).double().square()) + 0.2 * mean((v - ref).double().square())
    expected = -torch.minimum(a * rho, a * rho.clamp(0.99, 1.01)) + restraint.view(4, 3).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_dgpo_is_its_formula_and_cuts_one_side():
    method = DGPO(kl=0.2, b=3.0, clip=0.05)
    rows, u = drawn(rows=5, states=4, seed=4)
    v, ref, ema = (near(u, size, seed) for size, seed in ((0.7, 1), (0.8, 2), (0.7, 3)))
    loss, g, figures = with_gradient(method, rows, v, ref, ema=ema)
    m, m_ref, m_ema = (mean((w.double() - u).square()).view(5, 4) for w in (v, ref, ema))
    adv = rows.adv.double().clamp(-5, 5)
    gate = 1 / (1 + (-(3 * adv * (m - m_ref)).mean(1, keepdim=True)).exp())
    apart = mean((v - ref).double().square()).view(5, 4)
    torch.testing.assert_close(loss, (gate * adv * m + 0.2 * apart).mean(1), rtol=1e-5, atol=1e-6)
    rho = (m_ema - m).exp()
    cut = ((adv > 0) & (rho > 1.05)) | ((adv < 0) & (rho < 0.95))
    assert 0 < cut.sum() < cut.numel() and float(figures["ratio/clipped"]) == pytest.approx(float(cut.double().mean()))
    weight = (gate * adv * ~cut).flatten() / 4
    expected = (2 / D) * (weight[:, None, None] * (v.double() - u) + 0.2 / 4 * (v - ref).double())
    torch.testing.assert_close(g, expected, rtol=1e-4, atol=1e-7)


def test_the_copy_that_draws_keeps_a_fraction_of_itself_from_the_first_iteration_on():
    (lag,) = NFT(decay=0.9).copies.values()
    assert [lag(n) for n in (0, 1, 1000)] == [0.9] * 3


def test_nft_on_policy_takes_the_first_step_of_v_grpo():
    """The same samples, advantages and pairs: the rows of V-GRPO, each state a row for NFT."""
    rows, u = drawn(rows=6)
    rows = Noised(rows.prompt, rows.t, rows.x, rows.x0, rows.adv[:, :1].expand(-1, 3))
    apart = Noised(
        torch.zeros(18, dtype=torch.long), *(column.flatten(0, 1)[:, None] for column in (rows.t, rows.x, rows.x0, rows.adv))
    )
    v = near(u, 0.7, 1)
    _, ours, _ = with_gradient(NFT(kl=0.0, decay=0, adv_clip=9.0), apart, v, v)
    _, theirs, _ = with_gradient(VGRPO(num_train_steps=3, adv_soft=1e6), rows, v, v)
    torch.testing.assert_close(ours / 18, theirs / 6, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()) / 6)
    assert ours.abs().max() > 0


def test_equal_leaves_under_shared_pairs_teach_nothing():
    """sum A = 0: the members pull the same state in opposite directions.  V-GRPO's soft clip keeps the sum nearly."""
    rng = torch.Generator().manual_seed(0)
    leaves = torch.randn(1, 1, *LATENT, generator=rng).expand(1, 8, *LATENT).clone()
    times, rewards = (1.0, 0.8, 0.6, 0.3, 0.0), torch.randn(1, 8, generator=rng)
    for kind, more in ((NFT, {}), (AWM, {}), (VGRPO, {"adv_soft": 1e6}), (DGPO, {})):
        settings = {"group_size": 8, "num_steps": 4, "num_train_steps": 2, "train_from": 0.0, "train_to": 1.0}
        method = kind(**settings, shared="pairs", **more)
        adv = method.credit(Tree(leaves), rewards, rewards)
        (rows,) = method.updates(Tree(leaves, times=times), adv, [rng], Iteration(0))
        at = rows.flat()
        v = velocity(MU, at.x, at.t)
        _, g, _ = with_gradient(method, rows, v, v, old=v, ema=v)
        torch.testing.assert_close(g.sum(0), torch.zeros(LATENT, dtype=torch.float64), atol=1e-6, rtol=0)
        assert g.abs().max() > 1e-3


def test_single_precision_agrees_with_double():
    """Devices without fp64 lose nothing that matters: a mean of 200,000 absolute errors."""
    error = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0))
    double = error.double().square().mean(1) / error.double().abs().mean(1)
    torch.testing.assert_close(normalised(error).double(), double, rtol=1e-6, atol=0)
    assert float(normalised(torch.zeros(1, 5))) == 0.0  # the floor: no division by zero
