"""ImageReward (arXiv 2304.05977): a BLIP that reads the prompt while it looks at the picture, and a linear grade."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel

from neighbor_grpo.errors import STRICT
from neighbor_grpo.rewards.learned.base import Learned
from neighbor_grpo.rewards.learned.clip import Head
from neighbor_grpo.rewards.learned.files import CONVERTED, find_weights, read_model, read_tokenizer
from neighbor_grpo.rewards.learned.images import check_pictures, crop, normalise

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw grade over the authors' data
TOKENS = 35
MARKS = 2  # [DEC] and [ENC], BLIP's own tokens, have embeddings but no place in BERT's vocabulary and in no prompt


class Blip(BlipPreTrainedModel):
    """ViT, BERT whose layers also attend to the picture's tokens (both ways: an encoder), and a head on its first token."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_model = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.mlp = Head(config.text_config.hidden_size)
        self.tokenizer: BertTokenizer | None = None
        self.post_init()

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:  # [n, 3, S, S], n prompts -> [n]
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        seen = self.vision_model(pixel_values=pixels).last_hidden_state  # [n, 1 + patches, width]
        read = self.text_model(
            input_ids=tokens.input_ids.to(pixels.device),
            attention_mask=tokens.attention_mask.to(pixels.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=pixels.device),
        ).last_hidden_state
        return self.mlp(read[:, 0])


@dataclass(frozen=True, config=STRICT)
class ImageReward(Learned):
    """(mlp(CLS) - mean) / std, about -2.3 to 2."""

    name: ClassVar[str] = "imagereward"
    weights: str = f"{CONVERTED}/imagereward"

    def read(self) -> Blip:
        place = find_weights(self.name, self.weights)
        model = read_model(Blip, self.name, place)
        model.tokenizer = read_tokenizer(BertTokenizer, place, model.config.text_config.vocab_size, spare=MARKS)
        return model

    def portion(self, model: Blip, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = normalise(crop(check_pictures(images), model.config.vision_config.image_size))
        return (model(pixels, prompts).float() - MEAN) / STD
