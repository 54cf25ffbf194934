import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectors import LABELS, LINES, detr, mask2former
from PIL import Image
from pydantic import ValidationError
from transformers import DetrForObjectDetection, Mask2FormerForUniversalSegmentation

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.geneval import scorer
from neighbor_grpo.rewards.geneval.detect import Detector, pixel_color, read_detections
from neighbor_grpo.rewards.geneval.scorer import Geneval, Models


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    torch.manual_seed(3)
    return {build.__name__: build(tmp_path_factory.mktemp(build.__name__)) for build in (detr, mask2former)}


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def prepare(images, size):
    """8-bit pictures resized by Pillow, normalised as ImageNet."""
    pictures = [Image.fromarray((i * 255).round().byte().permute(1, 2, 0).numpy()).resize(size[::-1], 2) for i in images]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])) / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    return pixels.permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boxes_of_an_object_detector_are_those_of_a_plain_forward(detectors, images, dtype):
    model = DetrForObjectDetection.from_pretrained(detectors["detr"], dtype=dtype).eval()
    out = model(pixel_values=prepare(images, (48, 67)).to(dtype))
    found = Detector(detectors["detr"]).to(dtype).eval().find(images, 0.2)
    assert sum(map(len, found)) > 0
    for logits, boxes, objects in zip(out.logits.float(), out.pred_boxes.float(), found, strict=True):
        expected = []
        for row, (x, y, w, h) in zip(logits, boxes.tolist(), strict=True):
            score, label = row.softmax(0)[:3].max(0)
            if score > 0.2:
                corners = ((x - w / 2) * 56, (y - h / 2) * 40, (x + w / 2) * 56, (y + h / 2) * 40)
                expected.append((LABELS[label.item()], score.item(), corners))
        assert [d.label for d in objects] == [label for label, _, _ in expected]
        for d, (_, score, corners) in zip(objects, expected, strict=True):
            assert d.score == pytest.approx(score, abs=1e-5) and d.box == pytest.approx(corners, abs=1e-3)


@torch.no_grad()
def test_masks_are_those_of_a_plain_forward(detectors, images):
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detectors["mask2former"]).eval()
    out = model(pixel_values=prepare(images, (64, 96)))  # multiples of 32
    found = Detector(detectors["mask2former"]).eval().find(images, 0.2)
    assert any(0 < d.mask.float().mean() < 1 for objects in found for d in objects)
    for logits, masks, objects in zip(out.class_queries_logits, out.masks_queries_logits, found, strict=True):
        full = F.interpolate(masks[None], (40, 56), mode="bilinear")[0]
        expected = []
        for row, mask in zip(logits.softmax(-1), full, strict=True):
            inside = mask > 0
            if inside.any():
                y, x = torch.where(inside)
                box = (x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1)
                quality = mask[inside].sigmoid().mean().item()
                expected += [(LABELS[c], row[c].item() * quality, box) for c in range(3) if row[c].item() * quality > 0.2]
        assert [(d.label, d.box) for d in objects] == [(label, box) for label, _, box in expected]
        assert [d.score for d in objects] == pytest.approx([score for _, score, _ in expected], abs=1e-5)


@pytest.mark.parametrize("settings", [{"batch": 2}, {"offload": True}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("name", ["detr", "mask2former"])
def test_geneval_with_a_detector(detectors, images, name, settings):
    reward = Geneval(detector=detectors[name], clip=None, device="cpu", threshold=0.05, counting_threshold=0.99, **settings)
    reward.load()
    found = Detector(detectors[name]).eval().find(images, 0.05)[0]
    top = max(found, key=lambda d: d.score)
    color = pixel_color(images[0], top)
    one = [{"class": top.label.lower(), "count": 1}]
    metadata = [
        {"tag": "single_object", "include": one},
        {"tag": "counting", "include": one},
        {"tag": "single_object", "include": one},
    ]
    assert reward(images, ["a photo"] * 3, metadata) == [1.0, 0.0, 1.0]
    metadata = [{"include": [{**one[0], "color": c}]} for c in (color, "orange" if color == "red" else "red")]
    assert reward(images[[0, 0]], ["a photo"] * 2, metadata) == [1.0, 0.0]
    unknown, remote, bare = reward(
        images,
        ["a zebra"] * 3,
        [{"include": [{"class": "zebra", "count": 1}]}, {"include": [{"class": "tv remote", "count": 999}]}, {"tag": "colors"}],
    )
    assert "zebra" in str(unknown) and remote == 0.0 and "GenEval metadata" in str(bare)


@pytest.mark.parametrize("offload", [False, True])
def test_weights_rest_on_the_cpu_only_if_asked_to(detectors, images, offload, monkeypatch):
    reward, moves = Geneval(detector=detectors["detr"], clip=None, device="cpu", offload=offload), []
    reward.load()
    to = Models.to
    monkeypatch.setattr(Models, "to", lambda self, where: (moves.append(where), to(self, where))[1])
    reward(images[:1], ["a cat"], [LINES["one"]])
    assert moves == [torch.device("cpu"), "cpu"][: 1 + offload]


def test_a_file_that_does_not_fit_is_no_score(tmp_path):
    path = tmp_path / "found.jsonl"
    path.write_text('{"detections": [{"label": "bicycle", "score": 0.9, "box": [0, 0, 1, 1]}]}\n{"detections": []}\n')
    reward = Geneval(detections=str(path))
    reward.load()
    colorless, missing = reward(torch.zeros(2, 3, 8, 8), ["a", "b"], [LINES["colors"]] * 2)
    assert "color" in str(colorless) and missing == 0.0
    for n in (1, 3):
        scores = reward(torch.zeros(n, 3, 8, 8), ["a"] * n, [LINES["one"]] * n)
        assert len(scores) == n and all("2 pictures" in str(score) for score in scores)
    bare, short = reward(torch.zeros(2, 3, 8, 8), ["a", "b"], [{}, {"include": [{"class": "cat"}]}])
    assert "GenEval metadata" in str(bare) and "count" in str(short)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"detections": [{"label": "cat"}]}',
        '{"detections": 3}',
        '{"detections": [{"label": "cat", "score": 1, "box": [1, 2, 3]}]}',
        "",
    ],
)
def test_a_malformed_file_is_a_mistake_with_its_line(line, tmp_path):
    path = tmp_path / "found.jsonl"
    path.write_text('{"detections": []}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_detections(str(path))


@pytest.mark.parametrize(
    "settings", [{"detections": "nowhere.jsonl"}, {"detector": "nowhere"}, {"detector": "detr", "clip": "nowhere"}]
)
def test_what_is_missing_shows_at_load_in_one_line(settings, detectors):
    if settings.get("detector") == "detr":
        settings = settings | {"detector": detectors["detr"]}
    with pytest.raises(UserError, match="nowhere") as error:
        Geneval(device="cpu", **settings).load()
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_settings():
    with pytest.raises(ValidationError, match="only one"):
        Geneval(detector="mine", detections="found.jsonl")
    with pytest.raises(ValidationError):
        Geneval(treshold=0.5)
    assert math.isclose(Geneval().counting_threshold, 0.9)


def test_a_mistake_in_the_code_is_not_a_picture_without_a_score(detectors, images, monkeypatch):
    reward = Geneval(detector=detectors["detr"], clip=None, device="cpu")
    monkeypatch.setattr(scorer, "find_mistakes", lambda *_: None.mistake)
    with pytest.raises(AttributeError):
        reward(images[:1], ["a dog"], [{"include": [{"class": "dog", "count": 1}]}])
