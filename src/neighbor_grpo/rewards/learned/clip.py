"""Rewards by CLIP features: cosines of picture and prompt, and LAION's aesthetic predictor."""

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from neighbor_grpo.errors import STRICT
from neighbor_grpo.rewards.learned.base import Learned
from neighbor_grpo.rewards.learned.files import CONVERTED, check_keys, find_weights, read_model, read_state, read_tokenizer
from neighbor_grpo.rewards.learned.images import check_pictures, crop, normalise, pad, squash


class Towers(nn.Module):
    """Encode pictures and prompts by CLIP as fp32 unit vectors."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer | None = None) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer  # without a tokenizer only pictures can be encoded
        vision, text = clip.config.vision_config, clip.config.text_config
        assert isinstance(vision, CLIPVisionConfig) and isinstance(vision.image_size, int)
        assert isinstance(text, CLIPTextConfig)
        self.size = vision.image_size
        self.length = text.max_position_embeddings  # 77

    def image(self, images: Tensor, square: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Encode pictures [n, 3, H, W], each made a square by `square`.  Returns [n, d]."""
        pixels = normalise(square(check_pictures(images), self.size))
        return F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def text(self, prompts: list[str]) -> Tensor:
        """Encode prompts, equal ones once.  Returns [n, d].

        Tokens are padded to the full length, so that a score does not depend on the other prompts of a batch.  Attention is
        causal and the feature is read at the end-of-text token, so that the padding after it changes nothing.
        """
        assert self.tokenizer is not None
        distinct = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(
            distinct, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).input_ids
        features = self.clip.get_text_features(input_ids=tokens.to(self.clip.device)).pooler_output.float()
        return F.normalize(features, dim=-1)[[distinct.index(prompt) for prompt in prompts]]


@dataclass(frozen=True, config=STRICT)
class _Cosine(Learned[Towers]):
    """Score pictures by cos(f(picture), g(prompt)), the cosine of the CLIP image and text features."""

    name: ClassVar[str]

    @abstractmethod
    def square(self, images: Tensor, size: int) -> Tensor:
        """Make squares [n, 3, size, size] of pictures [n, 3, H, W]."""

    def read(self) -> Towers:
        """Read CLIP and its tokenizer."""
        place = find_weights(self.name, self.weights)
        clip = read_model(CLIPModel, self.name, place)
        return Towers(clip, read_tokenizer(CLIPTokenizer, place, clip.text_model.config.vocab_size))

    def score_batch(self, model: Towers, images: Tensor, prompts: list[str]) -> Tensor:
        """Score a batch by the cosines."""
        return (model.image(images, self.square) * model.text(prompts)).sum(-1)


@dataclass(frozen=True, config=STRICT)
class HPSv21(_Cosine):
    """Score pictures by HPSv2.1 (arXiv 2306.09341): the cosine of a fine-tuned ViT-H/14, without the logit scale.

    Scores are about 0.2 to 0.35.  The whole picture is resized with antialiasing and padded; numbers published elsewhere may
    be without antialiasing.
    """

    name: ClassVar[str] = "hpsv2.1"
    weights: str = f"{CONVERTED}/hpsv2.1"

    def square(self, images: Tensor, size: int) -> Tensor:
        """Pad the pictures to squares."""
        return pad(images, size)


@dataclass(frozen=True, config=STRICT)
class PickScore(_Cosine):
    """Score pictures by PickScore (arXiv 2305.01569): exp(logit scale) * cosine of a fine-tuned ViT-H/14.

    Scores are about 17 to 24; published tables divide them by 100.
    """

    name: ClassVar[str] = "pickscore"
    weights: str = "yuvalkirstain/PickScore_v1"

    def square(self, images: Tensor, size: int) -> Tensor:
        """Cut the centre squares out of the pictures."""
        return crop(images, size)

    def score_batch(self, model: Towers, images: Tensor, prompts: list[str]) -> Tensor:
        """Score a batch by the scaled cosines."""
        return model.clip.logit_scale.float().exp() * super().score_batch(model, images, prompts)


@dataclass(frozen=True, config=STRICT)
class ClipScore(_Cosine):
    """Score pictures by the cosine of DFN5B's ViT-H/14 at 378 pixels (arXiv 2309.17425), about 0.2 to 0.45.

    The weights have Apple's own licence; they are downloaded from its repository and never bundled.
    """

    name: ClassVar[str] = "clip"
    weights: str = "apple/DFN5B-CLIP-ViT-H-14-378"

    def square(self, images: Tensor, size: int) -> Tensor:
        """Squash the pictures to squares."""
        return squash(images, size)


class Head(nn.Module):
    """Map a feature to a score by linear layers, width -> 1024 -> 128 -> 64 -> 16 -> 1.

    The published heads were trained without activations between the layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        layers: list[nn.Module] = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for place in (1, 3, 5):  # training had dropout there, and the names of the published weights count it
            layers.insert(place, nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Score features [n, width].  Returns [n]."""
        return self.layers(x).squeeze(-1)


class Predictor(nn.Module):
    """Hold CLIP and a head on its image feature."""

    def __init__(self, towers: Towers, head: Head) -> None:
        super().__init__()
        self.towers, self.head = towers, head


@dataclass(frozen=True, config=STRICT)
class Aesthetic(Learned[Predictor]):
    """Score pictures by LAION's aesthetic predictor: a linear function of CLIP ViT-L/14's unit image feature.

    Scores are about 1 to 10 and do not depend on the prompt.
    https://github.com/christophschuhmann/improved-aesthetic-predictor, weights sac+logos+ava1-l14-linearMSE.
    """

    name: ClassVar[str] = "aesthetic"
    weights: str = f"{CONVERTED}/aesthetic"
    clip: Annotated[str, Field(description="directory or hub id of the CLIP model")] = "openai/clip-vit-large-patch14"

    def read(self) -> Predictor:
        """Read the head and CLIP."""
        place = find_weights(self.name, self.weights)  # before the large download
        clip = read_model(CLIPModel, self.name, find_weights(self.name, self.clip, "clip"))
        del clip.text_model, clip.text_projection  # unused: this frees their memory
        head = Head(clip.visual_projection.out_features)
        wanted, state = head.state_dict(), read_state(self.name, place)
        check_keys(
            self.name,
            place,
            {
                "lack": wanted.keys() - state.keys(),
                "have an unexpected": state.keys() - wanted.keys(),
                "have another shape of": {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape},
            },
        )
        head.load_state_dict(state)
        return Predictor(Towers(clip), head)

    def score_batch(self, model: Predictor, images: Tensor, prompts: list[str]) -> Tensor:
        """Score a batch of pictures."""
        feature = model.towers.image(images, crop)
        return model.head(feature.to(getattr(torch, self.dtype)))
