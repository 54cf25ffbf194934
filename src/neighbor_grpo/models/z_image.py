"""Z-Image and Z-Image-Turbo through diffusers' ZImagePipeline.

The pipeline's guidance_scale is what is added to the plain velocity, v + scale·(v - v_empty): cfg is guidance_scale + 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family


@dataclass(frozen=True, eq=False)
class ZImageCond(Cond):
    """Hold the text and its length."""

    text: Tensor  # [n, L, d]  zeros after the last token of the prompt
    length: Tensor  # [n]  tokens of the prompt


class ZImage(Family[ZImageCond]):
    """Adapt Z-Image.  A latent is the VAE's own: [channels, height, width] of its grid."""

    conditioning = ZImageCond
    encoders = ("text_encoder",)

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length, as far as the tokenizer allows."""
        return min(self.default("max_sequence_length"), self.pipe.tokenizer.model_max_length)

    def default_size(self) -> tuple[int, int]:
        """Return the size that the VAE was trained for."""
        return (self.vae.config.sample_size,) * 2

    def max_side(self) -> int:
        """Return the tokens of the longest side that has positions."""
        return min(self.config.axes_lens[1:])

    def embed_text(self, texts: list[str]) -> ZImageCond:
        """Encode texts, padded with zeros."""
        text, _ = self.pipe.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        padded = [pad(tokens, (0, 0, 0, self.max_sequence_length - len(tokens))) for tokens in text]
        return ZImageCond(torch.stack(padded), torch.tensor([len(tokens) for tokens in text]))

    def blank_text(self, n: int) -> ZImageCond:
        """Build zeros of the shape of `embed_text`, without padding."""
        return ZImageCond(
            self.zeros(n, self.max_sequence_length, self.config.cap_feat_dim), torch.full((n,), self.max_sequence_length)
        )

    def forward(self, x: Tensor, t: Tensor, cond: ZImageCond) -> Tensor:
        """Compute v in one pass of the transformer.

        It takes lists, a picture and a prompt of any length for each row, and looks from data to noise: its time is 1 - t
        and its output -v.
        """
        pictures = list(x[:, :, None].unbind())  # [C, 1, H, W] each: a video of one frame
        text = [tokens[:n] for tokens, n in zip(cond.text, cond.length.tolist(), strict=True)]
        return -torch.stack(self.transformer(pictures, 1 - t, text, return_dict=False)[0])[:, :, 0]
