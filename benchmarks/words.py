"""How well the models of `words pretrain --keep` spell held-out words: python benchmarks/words.py DIR [N].

Prints the share of N pictures (default 256) in which RapidOCR reads exactly the word: of the renderer's pictures, of the same
after the VAE, and of each save.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline

from neighbor_grpo.rewards.ocr import Ocr
from neighbor_grpo.worlds.words.render import render
from neighbor_grpo.worlds.words.world import HEIGHT, WIDTH, Spec, sample_specs

READER = Ocr(confidence=0.0, detect=False)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def exact(images: torch.Tensor, specs: list[Spec]) -> float:
    """Return the share of pictures [n, 3, H, W] whose word is read exactly, capitals or small."""
    return float(np.mean([read.lower() == spec.text.lower() for read, spec in zip(READER.read(images), specs, strict=True)]))


@torch.no_grad()
def main(place: Path, n: int) -> None:
    """Print the shares."""
    rng = np.random.default_rng(7)
    specs = sample_specs(n, rng, held_out=True)
    images = torch.from_numpy(np.stack([render(spec, rng) for spec in specs]))
    saves = sorted(place.glob("step-*"), key=lambda save: int(save.name.removeprefix("step-"))) or [place]
    vae = FluxPipeline.from_pretrained(saves[0]).vae.to(DEVICE)
    again = vae.decode(vae.encode(images.to(DEVICE) * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    psnr = -10 * (again.clamp(0, 1).cpu() - images).square().mean().log10()
    print(f"rendered {exact(images, specs):.3f}  after the VAE {exact(again, specs):.3f} ({psnr:.1f} dB)", flush=True)
    for save in saves:
        pipe = FluxPipeline.from_pretrained(save).to(DEVICE)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn = pipe(
            [spec.prompt for spec in specs],
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=16,
            max_sequence_length=pipe.tokenizer_2.model_max_length,
            generator=generator,
            output_type="pt",
        ).images
        print(f"{save.name} {exact(drawn, specs):.3f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 256)
