import numpy as np
import pytest
import torch

from neighbor_grpo.evaluate.metrics import (
    diversity,
    grid_artefacts,
    jpeg_size,
    saturation,
    sharpness,
)
from neighbor_grpo.rewards.registry import REWARDS
from neighbor_grpo.worlds.distance import kernel_distance
from neighbor_grpo.worlds.scenes.distance import scenes_distance
from neighbor_grpo.worlds.scenes.render import render
from neighbor_grpo.worlds.scenes.world import sample_scene, sample_specs


def test_kernel_distance_against_loops():
    a, b = torch.randn(5, 3), torch.randn(4, 3) + 1.5

    def k(x, y):
        return float(torch.exp(-(x - y).square().sum() / (2 * 1.5**2)))

    aa = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    bb = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, 1.5) == pytest.approx(max(aa + bb - 2 * ab, 0) ** 0.5, rel=1e-4, abs=1e-6)


def test_scenes_distance_is_small_for_the_renderer_and_grows_with_damage():
    rng = np.random.default_rng(5)
    specs = sample_specs(110, rng, held_out=True)
    prompts = [spec.prompt for spec in specs]
    true = torch.from_numpy(np.stack([[render(sample_scene(spec, rng), rng) for _ in range(2)] for spec in specs]))
    own = scenes_distance(true, prompts)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    faint, noisy = 0.8 * true + 0.19, (true + 0.2 * noise).clamp(0, 1)
    assert own < 0.5 * min(scenes_distance(faint, prompts), scenes_distance(noisy, prompts))


def test_diversity_by_hand():
    images = torch.zeros(1, 2, 3, 32, 32)
    images[0, 1] = 0.5
    assert diversity(images, ["a"]) == pytest.approx(0.5)
    assert diversity(images[:, [0, 0]], ["a"]) == 0.0


def test_jpeg_size_and_rewards_agree_and_noise_is_larger():
    plain, noise = torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    size = jpeg_size(noise[None], ["a"])
    assert size > 3 * jpeg_size(plain[None], ["a"])
    assert REWARDS["jpeg_compressibility"](noise, ["a"], [{}]) == [pytest.approx(-size / 500_000)]
    assert REWARDS["jpeg_incompressibility"](noise, ["a"], [{}]) == [pytest.approx(size / 500_000)]


def test_a_grid_of_8_or_16_pixels_is_found_wherever_it_starts():
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)), (96, 128), mode="bicubic"
    ).clamp(0, 1)
    noise = (smooth + 0.02 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1)))[None]
    for period in (8, 16):
        seams = torch.zeros(96, 128)
        seams[3::period], seams[:, 5::period] = 0.03, 0.03
        assert grid_artefacts(noise, ["a"]) < 2 < 3 < grid_artefacts(noise + seams, ["a"])
    other = torch.zeros(96, 128)
    other[:, ::11] = 0.03  # lines, but not the model's
    assert grid_artefacts(noise + other, ["a"]) < 2


def test_saturation_and_sharpness_by_hand():
    images = torch.zeros(2, 1, 3, 8, 8)
    images[0, 0, 0] = 0.75  # pure red; the second is black
    images[1, 0, :, 4, 4] = 1.0  # one white pixel: a Laplacian of -4 there and 1 at its four neighbours
    assert torch.allclose(saturation(images, ["a", "b"]), torch.tensor([0.75, 0.0]))
    assert torch.allclose(sharpness(images, ["a", "b"]), torch.tensor([0.0, (20 / 36) ** 0.5]))
