import re

import pytest
import torch
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.rewards.scorer import make_scorer
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.run.weights import load_base
from neighbor_grpo.training.probe import Probed, choose, probe

ROWS = [
    Probed(sigma, 1.0, {"a": 0.5, "b": 1.0}, {"a": a, "b": b})
    for sigma, a, b in ((0.1, 0.2, 2.0), (0.3, 0.6, 3.0), (0.5, 0.7, 6.0), (1.0, 1.0, 8.0))
]


@pytest.mark.parametrize(("share", "sigma"), [(0.1, 0.1), (0.3, 0.3), (0.5, 0.5), (0.9, 1.0)])
def test_the_smallest_sigma_at_which_every_reward_keeps_its_share(share, sigma):
    assert choose(ROWS, share) == sigma


def test_a_reward_without_any_spread_is_an_error():
    with pytest.raises(UserError, match="flat is the same for all pictures"):
        choose([Probed(0.3, 1.0, {"flat": 1.0}, {"flat": 0.0})], 0.5)


def test_rows_differ_by_sigma_alone(tiny_flux, tmp_path):
    """A reward linear in the noise: x = sqrt(1 - s^2) e + s d, so deviations within a group go exactly with s."""
    more = ["method.num_steps=1", "method.num_train_steps=1", "method.group_size=6", "method.solver=euler"]
    config = load_config(None, settings(tiny_flux, tmp_path, *more))
    model = load_base(config, torch.device("cpu"))
    model.velocity = lambda x, t, cond: torch.zeros_like(x)
    model.decode = lambda x, rows: x.mean(1)[:, :3, None, None].expand(-1, 3, 8, 8)
    rewards = RewardSet({"red": make_scorer("red", lambda images, prompts, metadata: images[:, 0, 0, 0])})
    texts = TextCache(model, tmp_path / "texts", 1.0)
    rows = probe(model, texts, read_prompts(config.prompts.path), rewards, config, (0.1, 0.2, 1.0))
    spreads = [row.spreads["red"] for row in rows]
    assert [spread / spreads[-1] for spread in spreads] == pytest.approx([0.1, 0.2, 1.0], rel=1e-5)
    assert [row.distance / rows[-1].distance for row in rows] == pytest.approx([0.1, 0.2, 1.0], rel=1e-5)


def test_the_command_prints_a_table_and_the_override(tiny_flux, tmp_path, capsys):
    asked = settings(tiny_flux, tmp_path)
    assert main(["probe", *asked, "--sigma", "0.2", "--sigma", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\| 0\.2 \|", out, re.M) and re.search(r"^method\.sigma=(0\.2|1)$", out, re.M)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sigma", "1.5"], "--sigma: 1.5 is out of range"),
        (["--share", "0"], "--share: 0 is out of range"),
        (["method={name: dance_grpo, group_size: 6}"], "dance_grpo has no sigma"),
    ],
)
def test_mistakes(tiny_flux, tmp_path, capsys, more, message):
    asked = [item for item in settings(tiny_flux, tmp_path) if not (item.startswith("method.") and "dance" in more[0])]
    assert main(["probe", *asked, *more]) == 2
    assert message in capsys.readouterr().err
