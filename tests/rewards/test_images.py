import numpy as np
import pytest
import torch
from PIL import Image

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.learned.images import check_pictures, crop, normalise, pad, squash

SIZES = [(28, 28), (64, 64), (37, 61), (61, 37), (11, 17), (20, 9), (100, 8), (9, 25)]


def pillow(picture, height, width):
    """Pillow's bicubic filter, which widens when it reduces, on floats."""
    channels = [Image.fromarray(channel, mode="F").resize((width, height), Image.Resampling.BICUBIC) for channel in picture]
    return np.clip(np.stack([np.asarray(channel) for channel in channels]), 0, 1)


def pictures(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.random((2, 3, height, width), dtype=np.float32).round()  # full contrast: bicubic overshoots


def same(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_is_the_whole_picture_on_a_black_square(height, width):
    images = pictures(height, width)
    h, w = (28, max(round(28 * width / height), 1)) if height >= width else (max(round(28 * height / width), 1), 28)
    wanted = np.zeros((2, 3, 28, 28), np.float32)
    top, left = (28 - h) // 2, (28 - w) // 2
    for n, picture in enumerate(images):
        wanted[n, :, top : top + h, left : left + w] = pillow(picture, h, w)
    same(pad(torch.from_numpy(images), 28).numpy(), wanted)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_the_centre(height, width):
    images = pictures(height, width)
    h, w = (28 * height // width, 28) if height >= width else (28, 28 * width // height)
    top, left = (h - 28) // 2, (w - 28) // 2
    wanted = [pillow(picture, h, w)[:, top : top + 28, left : left + 28] for picture in images]
    same(crop(torch.from_numpy(images), 28).numpy(), np.stack(wanted))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_is_the_whole_picture(height, width):
    images = pictures(height, width)
    same(squash(torch.from_numpy(images), 28).numpy(), np.stack([pillow(picture, 28, 28) for picture in images]))


def test_a_square_of_the_right_size_stays_and_nothing_leaves_the_range():
    images = torch.from_numpy(pictures(28, 28))
    for square in (pad, crop, squash):
        assert torch.equal(square(images, 28), images)
        large = square(images, 90)
        assert large.min() == 0 and large.max() == 1


def test_normalise_by_hand():
    grey = normalise(torch.full((1, 3, 2, 2), 0.5))
    assert grey[0, :, 1, 0].tolist() == pytest.approx([0.0690368, 0.1613937, 0.3328391], abs=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "\\[3, 8, 8\\]"),
        (torch.zeros(1, 4, 8, 8), "\\[1, 4, 8, 8\\]"),
        (torch.zeros(1, 3, 0, 8), "\\[1, 3, 0, 8\\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "bytes divided by 255"),
        (torch.full((1, 3, 8, 8), 1.01), "from 1.01 to 1.01"),
        (torch.full((1, 3, 8, 8), -0.01), "from -0.01"),
        (torch.zeros(1, 3, 8, 8).index_fill(2, torch.tensor(3), float("nan")), "nan"),
        (torch.zeros(1, 3, 8, 8).index_fill(2, torch.tensor(3), float("inf")), "inf"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        check_pictures(images)


def test_rounding_errors_are_forgiven():
    images = check_pictures(torch.tensor([-1e-4, 0.5, 1 + 1e-4]).view(1, 3, 1, 1).to(torch.bfloat16))
    assert images.dtype == torch.float32 and images.flatten().tolist() == [0.0, 0.5, 1.0]
    assert check_pictures(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
