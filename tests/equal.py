"""What it means that runs on several ranks are the run on one."""

import pytest
import torch
from runs import metrics
from test_trainer import weights, without_times


def equal_gradients(one, ranks):
    assert len(one["gradients"]) == len(ranks[0]["gradients"]) > 0
    for ours, theirs in zip(ranks[0]["gradients"], one["gradients"], strict=True):
        assert ours.keys() == theirs.keys()
        scale = max(float(gradient.abs().max()) for gradient in theirs.values())
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name] / scale, gradient / scale, atol=1e-5, rtol=0)
    for there in ranks:  # every rank's figures are those of all ranks, except the counts of its own forwards
        for ours, theirs in zip(there["figures"], one["figures"], strict=True):
            own = {name: count * len(ranks) for name, count in ours.items() if name.startswith("rows/")}
            assert ours | own == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def equal_runs(a, b):
    for one, two in zip(without_times(metrics(a)), without_times(metrics(b)), strict=True):
        assert {key.split("/")[-1] for key in one} == {key.split("/")[-1] for key in two}
        assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-3, abs=1e-5)
    close(weights(a, 3), weights(b, 3))
    ours, theirs = (torch.load(run / "checkpoints" / "000003" / "state.pt", weights_only=True) for run in (b, a))
    assert ours["updates_done"] == theirs["updates_done"] == 6
    for n, moments in theirs["optimizer"]["state"].items():
        close(moments, ours["optimizer"]["state"][n])
    close(*(dict(enumerate(state["ema"]["shadow_params"])) for state in (theirs, ours)))


def close(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert type(tensor) is type(b[name]) is torch.Tensor and tensor.shape == b[name].shape
        torch.testing.assert_close(b[name], tensor, atol=1e-5, rtol=0)


def equal_metrics(run, whole_run):
    for ours, theirs in zip(without_times(metrics(run)), without_times(metrics(whole_run)), strict=True):
        assert list(ours.values()) == list(theirs.values())
    assert all(torch.equal(weight, weights(run, 6)[name]) for name, weight in weights(whole_run, 6).items())
