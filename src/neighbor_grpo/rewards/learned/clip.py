"""Scorers that compare CLIP features, or read a grade off them."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from neighbor_grpo.errors import STRICT
from neighbor_grpo.rewards.learned.base import Learned
from neighbor_grpo.rewards.learned.files import CONVERTED, complain, find_weights, read_model, read_tokenizer
from neighbor_grpo.rewards.learned.images import check_pictures, crop, normalise, pad, squash


class Towers(nn.Module):
    """A CLIP model and its tokenizer: pictures and prompts become unit vectors, fp32.

    The tokens are padded to the full length, so that a score does not depend on the batch's other prompts; attention is
    causal and the feature is read at the end-of-text token, so that the padding after it changes nothing.
    """

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer | None = None) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.size: int = clip.config.vision_config.image_size
        self.length: int = clip.config.text_config.max_position_embeddings  # 77

    def image(self, images: Tensor, square: Callable[[Tensor, int], Tensor]) -> Tensor:  # [n, 3, H, W] -> [n, d]
        pixels = normalise(square(check_pictures(images), self.size))
        return F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def text(self, prompts: list[str]) -> Tensor:  # [n, d]; equal prompts are encoded once
        distinct = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(
            distinct, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).input_ids
        features = self.clip.get_text_features(input_ids=tokens.to(self.clip.device)).pooler_output.float()
        return F.normalize(features, dim=-1)[[distinct.index(prompt) for prompt in prompts]]


@dataclass(frozen=True, config=STRICT)
class _Cosine(Learned):
    """cos(f(picture), g(prompt)), of the CLIP image and text features."""

    name: ClassVar[str]
    square: ClassVar[Callable[[Tensor, int], Tensor]]

    def read(self) -> Towers:
        place = find_weights(self.name, self.weights)
        clip = read_model(CLIPModel, self.name, place)
        return Towers(clip, read_tokenizer(CLIPTokenizer, place, clip.config.text_config.vocab_size))

    def portion(self, model: Towers, images: Tensor, prompts: list[str]) -> Tensor:
        return (model.image(images, self.square) * model.text(prompts)).sum(-1)


@dataclass(frozen=True, config=STRICT)
class HPSv21(_Cosine):
    """HPSv2.1 (arXiv 2306.09341): the cosine, without the logit scale, of a fine-tuned ViT-H/14, about 0.2 to 0.35.

    The whole picture is resized with antialiasing and padded; numbers published by others may be without.
    """

    name = "hpsv2.1"
    square = staticmethod(pad)
    weights: str = f"{CONVERTED}/hpsv2.1"


@dataclass(frozen=True, config=STRICT)
class PickScore(_Cosine):
    """PickScore (arXiv 2305.01569): exp(logit scale)·cosine of a fine-tuned ViT-H/14, about 17 to 24; tables print it / 100."""

    name = "pickscore"
    square = staticmethod(crop)
    weights: str = "yuvalkirstain/PickScore_v1"

    def portion(self, model: Towers, images: Tensor, prompts: list[str]) -> Tensor:
        return model.clip.logit_scale.float().exp() * super().portion(model, images, prompts)


@dataclass(frozen=True, config=STRICT)
class ClipScore(_Cosine):
    """CLIP score: the cosine of DFN5B's ViT-H/14 at 378 pixels (arXiv 2309.17425), about 0.2 to 0.45.

    Apple's licence of the weights is its own; they are downloaded from its repository and never bundled.
    """

    name = "clip"
    square = staticmethod(squash)
    weights: str = "apple/DFN5B-CLIP-ViT-H-14-378"


class Head(nn.Module):
    """width -> 1024 -> 128 -> 64 -> 16 -> 1 with nothing between: the published heads were trained without activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for place in (1, 3, 5):  # where training had dropout, which the names of the published weights count
            layers.insert(place, nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # [n, width] -> [n]
        return self.layers(x).squeeze(-1)


class Grader(nn.Module):
    def __init__(self, towers: Towers, head: Head) -> None:
        super().__init__()
        self.towers, self.head = towers, head


@dataclass(frozen=True, config=STRICT)
class Aesthetic(Learned):
    """LAION's aesthetic predictor: a linear grade, about 1 to 10, of CLIP ViT-L/14's unit image feature.  Prompts are unused.

    https://github.com/christophschuhmann/improved-aesthetic-predictor, weights sac+logos+ava1-l14-linearMSE.
    """

    name: ClassVar[str] = "aesthetic"
    weights: str = f"{CONVERTED}/aesthetic"
    clip: Annotated[str, Field(description="directory or hub id of the CLIP model")] = "openai/clip-vit-large-patch14"

    def read(self) -> Grader:
        place = find_weights(self.name, self.weights)  # before the large download
        clip = read_model(CLIPModel, self.name, find_weights(self.name, self.clip, "clip"))
        clip.text_model = clip.text_projection = None  # never used
        head = Head(clip.config.projection_dim)
        wanted, state = head.state_dict(), load_file(place / "model.safetensors")
        complain(
            self.name,
            place,
            {
                "lack": wanted.keys() - state.keys(),
                "have no use for": state.keys() - wanted.keys(),
                "have another shape of": {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape},
            },
        )
        head.load_state_dict(state)
        return Grader(Towers(clip), head)

    def portion(self, model: Grader, images: Tensor, prompts: list[str]) -> Tensor:
        feature = model.towers.image(images, crop)
        return model.head(feature.to(model.head.layers[0].weight.dtype))
