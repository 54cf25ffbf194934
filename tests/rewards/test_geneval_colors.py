import pytest
import torch
import torch.nn.functional as F
from detectors import detr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from neighbor_grpo.rewards.geneval.detect import COLORS, ClipColor, Detection, Detector, cut_out, lab, pixel_color
from neighbor_grpo.rewards.geneval.scorer import Geneval


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


def test_geneval_names_colours_by_clip(clip, tmp_path):
    torch.manual_seed(3)
    detector, images = detr(tmp_path), torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    reward = Geneval(detector=detector, clip=clip, device="cpu", threshold=0.05)
    top = max(Detector(detector).eval().find(images, 0.05)[0], key=lambda d: d.score)
    color = ClipColor(clip).eval()(images[0], top, top.label.lower())
    metadata = [{"include": [{"class": top.label.lower(), "count": 1, "color": c}]} for c in COLORS]
    assert reward(images.expand(10, -1, -1, -1), ["a cat"] * 10, metadata) == [float(c == color) for c in COLORS]
