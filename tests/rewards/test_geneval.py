import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SwinConfig,
)

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.geneval.detect import (
    COLORS,
    ClipColor,
    Detection,
    Detector,
    cut_out,
    lab,
    pixel_color,
    read_detections,
)
from neighbor_grpo.rewards.geneval.scorer import Geneval, judge, relations

LINES = {
    name: json.loads(line)
    for name, line in {  # as they stand in GenEval's file
        "one": """{"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}],
        "prompt": "a photo of a computer mouse"}""",
        "two": """{"tag": "two_object", "include": [{"class": "oven", "count": 1}, {"class": "bed", "count": 1}],
        "prompt": "a photo of an oven and a bed"}""",
        "counting": """{"tag": "counting", "include": [{"class": "apple", "count": 4}],
        "exclude": [{"class": "apple", "count": 5}], "prompt": "a photo of four apples"}""",
        "colors": """{"tag": "colors", "include": [{"class": "bicycle", "count": 1, "color": "red"}],
        "prompt": "a photo of a red bicycle"}""",
        "position": """{"tag": "position", "include": [{"class": "cow", "count": 1},
        {"class": "tv remote", "count": 1, "position": ["below", 0]}], "prompt": "a photo of a tv remote below a cow"}""",
        "color_attr": """{"tag": "color_attr", "include": [{"class": "toilet", "count": 1, "color": "white"},
        {"class": "apple", "count": 1, "color": "red"}], "prompt": "a photo of a white toilet and a red apple"}""",
    }.items()
}


def seen(*rows):
    """Detections from (label, score) and, if given, a colour and a box."""
    return [Detection(label, score, *(rest[1:] or [(0, 0, 10, 10)]), *rest[:1]) for label, score, *rest in rows]


def apples(*scores):
    return seen(*(("apple", score) for score in scores))


COW, UNDER, BESIDE = (40, 10, 60, 30), (45, 50, 55, 60), (80, 12, 90, 32)


@pytest.mark.parametrize(
    ("name", "detections", "right"),
    [
        ("one", seen(("computer mouse", 0.5)), True),
        ("one", seen(("mouse", 0.31), ("cat", 0.9)), True),  # COCO's own name
        ("one", seen(("computer mouse", 0.3)), False),  # the threshold itself is not above it
        ("one", seen(("cat", 0.9)), False),
        ("one", [], False),
        ("two", seen(("oven", 0.9), ("bed", 0.4)), True),
        ("two", seen(("oven", 0.9), ("oven", 0.8)), False),
        ("counting", apples(0.95, 0.91, 0.99, 0.92), True),
        ("counting", apples(0.95, 0.91, 0.99, 0.92, 0.9), True),  # the fifth is not sure enough to count
        ("counting", apples(0.95, 0.91, 0.99, 0.92, 0.93), False),
        ("counting", apples(0.95, 0.91, 0.99, 0.85), False),
        ("colors", seen(("bicycle", 0.5, "red")), True),
        ("colors", seen(("bicycle", 0.5, "red"), ("bicycle", 0.4, "blue")), True),  # the surest one decides
        ("colors", seen(("bicycle", 0.4, "red"), ("bicycle", 0.5, "blue")), False),
        ("colors", seen(("car", 0.5, "red")), False),
        ("position", seen(("cow", 0.9, None, COW), ("remote", 0.5, None, UNDER)), True),
        ("position", seen(("cow", 0.9, None, UNDER), ("remote", 0.5, None, COW)), False),
        ("position", seen(("cow", 0.9, None, COW), ("remote", 0.5, None, BESIDE)), False),
        ("position", seen(("remote", 0.5, None, UNDER)), False),
        ("color_attr", seen(("toilet", 0.5, "white"), ("apple", 0.5, "red")), True),
        ("color_attr", seen(("toilet", 0.5, "red"), ("apple", 0.5, "white")), False),
        ("color_attr", seen(("toilet", 0.5, "white"), ("apple", 0.5, "green")), False),
    ],
)
def test_decisions(name, detections, right, tmp_path):
    metadata = LINES[name]
    wrong = judge(detections, metadata, 0.9 if name == "counting" else 0.3)
    assert (wrong == []) is right
    rows = [{"label": d.label, "score": d.score, "box": d.box} | ({"color": d.color} if d.color else {}) for d in detections]
    (tmp_path / "found.jsonl").write_text(json.dumps({"detections": rows}))
    reward = Geneval(detections=str(tmp_path / "found.jsonl"))  # picks the threshold by the tag itself
    assert reward(torch.zeros(1, 3, 8, 8), [metadata["prompt"]], [metadata]) == [float(right)]


def test_reasons():
    assert judge([], LINES["two"]) == ["0 of 1 oven", "0 of 1 bed"]
    assert judge(apples(*[0.95] * 20), LINES["counting"], 0.9) == ["16 apple, not fewer than 5"]  # 16 are looked at
    assert judge(seen(("bicycle", 0.5, "pink")), LINES["colors"]) == ["bicycle is pink, not red"]
    assert judge(seen(("remote", 0.5)), LINES["position"]) == ["0 of 1 cow"]
    assert judge(seen(("cow", 0.5), ("remote", 0.5)), LINES["position"]) == ["tv remote is not below cow"]


def test_every_object_counted_must_hold_its_place_and_colour():
    dog = {"class": "dog", "count": 2, "color": "red", "position": ["below", 0]}
    metadata = {"include": [{"class": "cow", "count": 2}, dog]}
    cows, dogs = [("cow", 0.9, None, COW), ("cow", 0.8, None, (40, 12, 60, 32))], [("dog", 0.9, "red", UNDER)]
    assert judge(seen(*cows, *dogs, ("dog", 0.8, "red", UNDER)), metadata) == []
    assert judge(seen(*cows, *dogs, ("dog", 0.8, "blue", UNDER)), metadata) == ["dog is blue, not red"]
    assert judge(seen(*cows, *dogs, ("dog", 0.8, "red", BESIDE)), metadata) == ["dog is not below cow"]
    cows[1] = ("cow", 0.8, None, (40, 60, 60, 80))
    assert judge(seen(*cows, *dogs, ("dog", 0.8, "red", UNDER)), metadata) == ["dog is not below cow"]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [  # of a 20 x 20 box from a 20 x 20 one: components shrink by 4
        ((30, 0), {"right of"}),
        ((-30, 0), {"left of"}),
        ((0, 30), {"below"}),
        ((0, -30), {"above"}),
        ((30, 30), {"right of", "below"}),  # 26 / 42.4 = 0.61
        ((7, 7), set()),  # 3 / 9.9
        ((14, 14), {"right of", "below"}),
        ((13, 13), set()),  # 10 / 19.8 = 0.505, 9 / 18.4 = 0.49
        ((30, 16), {"right of"}),  # 12 / 34
        ((3, -3), set()),
        ((4, 0), set()),
        ((0, 0), set()),
        ((8.1, 0), {"right of"}),
        ((7.9, 0), set()),
    ],
)
def test_relations_by_hand(offset, expected):
    box = (50, 50, 70, 70)
    assert relations([c + o for c, o in zip(box, offset * 2, strict=True)], box) == expected


def test_margin_follows_each_side_of_the_boxes():
    assert relations((0, 0, 200, 10), (130, 0, 230, 10)) == {"left of"}  # centres 80 apart, margin 30: 50 / 80
    assert relations((0, 0, 400, 10), (230, 0, 330, 10)) == set()  # centres 80 apart, margin 50
    assert relations((0, 0, 400, 10), (180, 20, 220, 30)) == {"above"}


def test_lab_of_known_colours():
    known = {
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (5, 5, 5): (1.37, 0, 0),
        (119, 119, 119): (50.03, 0, 0),
    }
    for rgb, expected in known.items():
        assert lab(torch.tensor(rgb) / 255).tolist() == pytest.approx(expected, abs=0.03)


SHADES = {
    "red": [(220, 20, 30), (255, 0, 0), (150, 15, 20)],
    "orange": [(250, 140, 10), (255, 165, 0), (230, 110, 30)],
    "yellow": [(240, 230, 40), (255, 255, 0), (230, 200, 40)],
    "green": [(30, 150, 50), (0, 255, 0), (20, 80, 30)],
    "blue": [(30, 60, 220), (70, 70, 180), (150, 190, 240)],
    "purple": [(120, 30, 140), (128, 0, 128), (90, 40, 110)],
    "pink": [(250, 170, 190), (255, 105, 180), (230, 120, 150)],
    "brown": [(140, 60, 30), (110, 70, 40), (101, 67, 33)],
    "black": [(25, 25, 30), (0, 0, 0), (50, 48, 48)],
    "white": [(240, 240, 235), (255, 255, 255), (215, 218, 220)],
}


@pytest.mark.parametrize("color", COLORS)
def test_flat_patches_have_their_colours_name(color):
    for rgb in SHADES[color]:
        image = torch.full((3, 40, 60), 0.5)
        image[:, 14:26, 24:38] = torch.tensor(rgb).view(3, 1, 1) / 255
        found = Detection("car", 0.9, (20.3, 10.2, 42.1, 29.8))  # the patch fills only the middle of the box
        assert pixel_color(image, found) == color, rgb
        image[:, 18:20] = 0.5  # a stripe across is no matter to a median
        assert pixel_color(image, found) == color, rgb


def test_colour_within_a_mask():
    image, mask = torch.zeros(3, 20, 20), torch.zeros(20, 20, dtype=torch.bool)
    mask[:4], image[2, :4] = True, 1.0
    assert pixel_color(image, Detection("car", 0.9, (0, 0, 20, 20), mask=mask)) == "blue"
    assert pixel_color(image, Detection("car", 0.9, (0, 0, 20, 20))) == "black"


@pytest.mark.parametrize("box", [(-5, -5, 3, 4), (18, 18, 40, 40), (25, 25, 30, 30), (7.1, 7.2, 7.3, 7.4)])
def test_boxes_at_and_beyond_the_edge_have_pixels(box):
    part, mask = cut_out(torch.ones(3, 20, 20), Detection("car", 0.9, box))
    assert part[0].numel() == mask.numel() > 0 and pixel_color(torch.ones(3, 20, 20), Detection("car", 0.9, box)) == "white"


def detr(directory):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=6,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        id2label=LABELS,
    )
    return save(DetrForObjectDetection(config), DetrImageProcessorPil, directory)


def mask2former(directory):
    stages = [f"stage{n}" for n in (1, 2, 3, 4)]
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
        id2label=LABELS,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    for parameter in model.model.transformer_module.decoder.mask_predictor.parameters():
        parameter.data.mul_(4).add_(torch.randn_like(parameter).mul(0.3))  # masks that are neither full nor empty
    return save(model, Mask2FormerImageProcessorPil, directory, size_divisor=32)


LABELS, SIZE = {0: "Dog", 1: "cat", 2: "remote"}, {"shortest_edge": 48, "longest_edge": 80}


def save(model, processor, directory, **options):
    model.save_pretrained(directory)
    processor(size=SIZE, **options).save_pretrained(directory)
    return str(directory)


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
    to = torch.nn.ModuleDict.to
    monkeypatch.setattr(torch.nn.ModuleDict, "to", lambda self, where: (moves.append(where), to(self, where))[1])
    reward(images[:1], ["a cat"], [LINES["one"]])
    assert moves == [torch.device("cpu"), "cpu"][: 1 + offload]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory, words = tmp_path_factory.mktemp("clip"), ["[pad]", "[end]", "a", "photo", "of", "car", "object"]
    words += [*COLORS, *(f"{color}-colored" for color in COLORS)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[end]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A [end]", special_tokens=[("[end]", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", eos_token="[end]").save_pretrained(directory)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=size | {"vocab_size": len(words), "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1},
            vision_config=size | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
            initializer_factor=4.0,
        )
    ).save_pretrained(directory)
    return str(directory)


@torch.no_grad()
def test_clip_names_the_colour_whose_prompts_are_nearest(clip):
    namer, plain = ClipColor(clip).eval(), CLIPModel.from_pretrained(clip).eval()
    mask, names = torch.zeros(48, 64, dtype=torch.bool), set()
    mask[8:40, 8:40], mask[20:24, 20:24] = True, False
    for seed in range(6):
        image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(seed)) * torch.rand(3, 1, 1)
        shown = torch.where(mask, image, torch.tensor(0x99 / 255))[None, :, 8:40, 8:40]  # 32 x 32 as the tower takes it
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels = (shown - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        similarity = {}
        for color in COLORS:
            prompts = [f"a photo of a {color} car", f"a photo of a {color}-colored car", f"a photo of a {color} object"]
            total = sum(
                F.normalize(plain.get_text_features(**namer.tokenizer(p, return_tensors="pt")).pooler_output, dim=-1)
                for p in prompts
            )
            features = plain.get_image_features(pixel_values=pixels).pooler_output
            similarity[color] = F.cosine_similarity(features, total).item()
            assert torch.allclose(namer.classifier("car")[COLORS.index(color)], F.normalize(total[0], dim=0), atol=1e-6)
        found = Detection("car", 0.9, (8, 8, 40, 40), mask=mask)
        assert namer(image, found, "car") == max(similarity, key=similarity.get)
        names.add(namer(image, found, "car"))
    assert len(names) > 1


def test_geneval_names_colours_by_clip(clip, detectors, images):
    reward = Geneval(detector=detectors["detr"], clip=clip, device="cpu", threshold=0.05)
    top = max(Detector(detectors["detr"]).eval().find(images, 0.05)[0], key=lambda d: d.score)
    color = ClipColor(clip).eval()(images[0], top, top.label.lower())
    metadata = [{"include": [{"class": top.label.lower(), "count": 1, "color": c}]} for c in COLORS]
    assert reward(images[[0] * 10], ["a cat"] * 10, metadata) == [float(c == color) for c in COLORS]


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
    bare, odd = reward(torch.zeros(2, 3, 8, 8), ["a", "b"], [{}, {"include": [{"class": "cat"}]}])
    assert "GenEval metadata" in str(bare) and isinstance(odd, KeyError)


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
