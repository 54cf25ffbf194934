import numpy as np
import pytest
import torch
from PIL import Image

from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.metrics import METRICS
from neighbor_grpo.files.frames import gallery
from neighbor_grpo.files.images import FRAMES, key_frames, read_file, save_png, to_bytes, to_pil
from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import make_scorer


def films(*shape):
    return torch.rand(*shape, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def test_bytes_are_rounded_and_kept_in_range():
    assert to_bytes(torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2])).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_file_gives_back_what_was_saved(tmp_path, shape):
    x = films(*shape)
    save_png(x, tmp_path / "x.png")
    assert torch.equal(read_file(tmp_path / "x.png"), to_bytes(x) / 255)
    with Image.open(tmp_path / "x.png") as file:
        assert getattr(file, "n_frames", 1) == (shape or (1,))[0]


def test_pictures_are_read_as_viewers_show_them(tmp_path):
    """16 bits are scaled, not cut off at 255; a camera held sideways is turned; what is transparent is white."""
    values = np.arange(0, 2**16, 2**16 // 64, np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (read_file(tmp_path / "deep.png")[0] - torch.from_numpy(values / 65535)).abs().max() < 0.6 / 255
    wide, exif = Image.new("RGB", (48, 32), "red"), Image.Exif()
    wide.paste("blue", (0, 0, 24, 32))  # its left half
    exif[274] = 6  # turn by a quarter, clockwise: left becomes top
    wide.save(tmp_path / "turned.png", exif=exif)
    turned = read_file(tmp_path / "turned.png")
    assert turned.shape == (3, 48, 32) and turned[:, 0, 0].tolist() == [0, 0, 1] and turned[:, -1, -1].tolist() == [1, 0, 0]
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (8, 8), (0, 51)).save(tmp_path / "grey.png")
    assert (read_file(tmp_path / "clear.png") == 1).all()
    torch.testing.assert_close(read_file(tmp_path / "grey.png"), torch.full((3, 8, 8), 0.8), atol=1e-6, rtol=0)


def test_a_still_video_is_a_video_of_its_frames(tmp_path):
    """Frames that are the same are not merged into one."""
    x = films(1).expand(4, 3, 32, 48)
    save_png(x, tmp_path / "still.png")
    assert read_file(tmp_path / "still.png").shape == x.shape


@pytest.mark.parametrize(("frames", "picked"), [(3, [0, 1, 2]), (8, list(range(8))), (15, list(range(0, 15, 2)))])
def test_key_frames_are_evenly_spaced_from_the_first_to_the_last(frames, picked):
    numbered = torch.arange(frames).view(1, frames, 1, 1, 1).expand(2, frames, 3, 4, 4)
    assert key_frames(numbered)[0, :, 0, 0, 0].tolist() == picked and FRAMES == 8


def brightness(images, prompts, metadata):
    assert images.ndim == 4
    return images.mean((1, 2, 3))


def test_a_reward_of_pictures_is_its_mean_over_the_frames():
    x = films(3, 15)
    got = score(make_scorer("brightness", brightness), x, ["a", "b", "c"], [{}] * 3)
    torch.testing.assert_close(got.values, x[:, ::2].double().mean((1, 2, 3, 4)), atol=1e-6, rtol=0)


def test_a_video_with_a_frame_that_cannot_be_scored_has_no_score():
    def light(images, prompts, metadata):
        return [ValueError("too dark") if float(image.mean()) < 0.1 else 1.0 for image in images]

    x = films(3, 4)
    x[1, 2] = 0.0
    got = score(make_scorer("light", light), x, ["a", "b", "c"], [{}] * 3)
    assert got.values.isnan().tolist() == [False, True, False] and "too dark" in got.failures[0].reason


def test_a_reward_of_videos_sees_all_frames_and_refuses_pictures():
    def length(videos, prompts, metadata):
        return [float(video.shape[0]) for video in videos]

    length.of_videos = True
    scorer = make_scorer("length", length)
    assert score(scorer, films(2, 15), ["a", "b"], [{}] * 2).values.tolist() == [15.0, 15.0]
    assert score(make_scorer("win_rate:length", WinRate(scorer)), films(2, 15), ["a", "a"], [{}] * 2, 2).values.tolist() == [
        0.5,
        0.5,
    ]
    with pytest.raises(UserError, match="length scores videos"):
        score(scorer, films(2), ["a", "b"], [{}] * 2)


def test_a_win_rate_over_videos_compares_frame_by_frame():
    """The first video is brighter in three of four frames: it wins 3/4."""
    x = films(2, 4) * 0
    x[0, :3], x[1, 3] = 1.0, 1.0
    assert score(
        make_scorer("win_rate", WinRate(make_scorer("brightness", brightness))), x, ["a", "a"], [{}] * 2, 2
    ).values.tolist() == [0.75, 0.25]


def test_metrics_of_pictures_are_means_over_frames_and_motion_is_of_the_frames():
    x, texts = films(2, 2, 4), ["a", "b"]
    for name in ("diversity", "jpeg_size", "grid_artefacts", "saturation", "sharpness"):
        alone = torch.stack([METRICS[name].function(x[:, :, f], texts) for f in range(4)]).mean(0)
        torch.testing.assert_close(METRICS[name].measure(x, texts), alone)
    steps = torch.arange(4).view(4, 1, 1, 1) * torch.tensor([0.1, 0.2]).view(2, 1, 1, 1, 1, 1)
    torch.testing.assert_close(METRICS["motion"].measure(steps.expand(2, 2, 4, 3, 8, 8), texts), torch.tensor([0.1, 0.2]))
    with pytest.raises(UserError, match="motion measures videos"):
        METRICS["motion"].measure(x[:, :, 0], texts)


def test_the_gallery_shows_three_frames_of_a_video():
    x = torch.zeros(1, 1, 5, 3, 16, 16)
    x[0, 0, 2, 0], x[0, 0, 4, 1] = 1.0, 1.0  # black, red in the middle, green at the end
    page = gallery({"before": [[[to_pil(frame) for frame in x[0, 0]]]]}, ["a film"], height=16)
    assert [page.getpixel((8 + 16 * n + 8, 18 + 8)) for n in range(3)] == [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
