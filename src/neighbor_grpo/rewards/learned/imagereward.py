"""ImageReward (arXiv 2304.05977): BLIP's text encoder with cross-attention to the picture, and a linear head."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipPreTrainedModel,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from neighbor_grpo.errors import STRICT
from neighbor_grpo.rewards.learned.base import Learned
from neighbor_grpo.rewards.learned.clip import Head
from neighbor_grpo.rewards.learned.files import CONVERTED, find_weights, read_model, read_tokenizer
from neighbor_grpo.rewards.learned.images import check_pictures, crop, normalise

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' data
TOKENS = 35
MARKS = 2  # [DEC] and [ENC], BLIP's own tokens, have embeddings but are missing in BERT's vocabulary; prompts do not use them


class Blip(BlipPreTrainedModel):
    """Combine a ViT, a BERT whose layers also attend to the picture's tokens, and a head on BERT's first token."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, BlipVisionConfig) and isinstance(vision.image_size, int)
        assert isinstance(text, BlipTextConfig)
        self.size, self.vocabulary = vision.image_size, text.vocab_size
        self.vision_model = BlipVisionModel(vision)
        self.text_model = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = Head(text.hidden_size)
        self.tokenizer: BertTokenizer | None = None
        self.post_init()

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Score normalised squares [n, 3, S, S] with n prompts.  Returns [n]."""
        assert self.tokenizer is not None
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        visual = self.vision_model(pixel_values=pixels).last_hidden_state  # [n, 1 + patches, width]
        textual = self.text_model(
            input_ids=tokens.input_ids.to(pixels.device),
            attention_mask=tokens.attention_mask.to(pixels.device),
            encoder_hidden_states=visual,
            encoder_attention_mask=torch.ones(visual.shape[:2], dtype=torch.long, device=pixels.device),
        ).last_hidden_state
        return self.mlp(textual[:, 0])


@dataclass(frozen=True, config=STRICT)
class ImageReward(Learned[Blip]):
    """Score pictures by (head(first token) - mean) / std, about -2.3 to 2."""

    name: ClassVar[str] = "imagereward"
    weights: str = f"{CONVERTED}/imagereward"

    def read(self) -> Blip:
        """Read BLIP and its tokenizer."""
        place = find_weights(self.name, self.weights)
        model = read_model(Blip, self.name, place)
        model.tokenizer = read_tokenizer(BertTokenizer, place, model.vocabulary, spare=MARKS)
        return model

    def score_batch(self, model: Blip, images: Tensor, prompts: list[str]) -> Tensor:
        """Score a batch of pictures."""
        pixels = normalise(crop(check_pictures(images), model.size))
        return (model(pixels, prompts).float() - MEAN) / STD
