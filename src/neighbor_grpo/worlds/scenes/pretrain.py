"""The recipe of the bundled model: renderer -> VAE -> flow matching with the text encoders -> FluxPipeline directory.

Every component is a diffusers or transformers class, so that the result loads with `DiffusionPipeline.from_pretrained` like
any published FLUX.  Sizes suit a laptop: 16 image tokens, 12 text tokens, a transformer of 2.2 M parameters and a VAE of
0.7 M.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from neighbor_grpo.flow.path import shift_time
from neighbor_grpo.worlds.scenes.render import render
from neighbor_grpo.worlds.scenes.world import SIZE, all_specs, sample_scene, sample_specs

TEXT_LENGTH = 12
SHIFT = 3.0  # time shift of sampling and of training
FAMILY_SHARES = (0.15, 0.25, 0.25, 0.35)  # of the training prompts: more of the harder families


def build_vae() -> AutoencoderKL:
    """Build an f8 VAE of 16 channels with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer() -> FluxTransformer2DModel:
    """Build a FLUX transformer of 2.2 M random weights."""
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def build_text() -> tuple[CLIPTokenizer, CLIPTextModel, T5Tokenizer, T5EncoderModel]:
    """Build two encoders whose tokens are the words of the prompts; other words are unknown to them."""
    words = sorted(set(re.findall(r"\w+", " ".join(spec.prompt for spec in all_specs()))))
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = Whitespace()
    bpe.train_from_iterator(words, BpeTrainer(special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>"))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    clip_tokenizer = CLIPTokenizer(
        vocab=bpe.get_vocab(),
        merges=merges,  # type: ignore[arg-type]  # declared as strings, but it takes the pairs of a tokenizer's file
        model_max_length=TEXT_LENGTH,
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=bpe.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in words)]
    t5_tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(pieces),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    return clip_tokenizer, clip, t5_tokenizer, t5


def pictures(n: int, rng: np.random.Generator) -> tuple[list[str], torch.Tensor]:
    """Draw n training prompts and their pictures [n, 3, SIZE, SIZE], uint8."""
    specs = sample_specs(n, rng, held_out=False, shares=FAMILY_SHARES)
    drawn = np.stack([render(sample_scene(spec, rng), rng) for spec in specs])
    return [spec.prompt for spec in specs], torch.from_numpy((drawn * 255).round().astype(np.uint8))


def cosine(
    parameters: Iterator[torch.nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Build AdamW with a learning rate that warms up over 200 steps and falls to 2 % on a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * n / steps))
    )
    return optimizer, scheduler


def train_vae(steps: int, batch: int, seed: int, device: str) -> AutoencoderKL:
    """Train the VAE by mean squared error and a weak KL; then give latents mean 0 and variance 1 by its shift and scale."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    optimizer, scheduler = cosine(vae.parameters(), 2e-3, steps)
    for step in track(range(steps), "VAE"):
        x = pictures(batch, rng)[1].to(device).float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample()).sample - x).square().mean()
        loss = error + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 250 == 249 or step == steps - 1:
            print(f"VAE step {step + 1}: PSNR {10 * math.log10(4 / error.item()):.1f} dB", flush=True)
    latents = encode(vae, pictures(1024, rng)[1], device)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return vae.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor, device: str) -> torch.Tensor:
    """Encode uint8 pictures to the means of the VAE's posterior [n, 16, 8, 8], on the CPU."""
    chunks = images.split(64)
    return torch.cat([vae.encode(chunk.to(device).float() / 127.5 - 1).latent_dist.mean.cpu() for chunk in chunks])


def train_flow(vae: AutoencoderKL, out: Path, scenes: int, steps: int, batch: int, seed: int, device: str) -> None:
    """Train transformer and text encoders together by flow matching, with EMA: x = (1 - t)·x0 + t·eps, target eps - x0."""
    torch.manual_seed(seed)
    prompts, images = pictures(scenes, np.random.default_rng(seed + 1))
    x0 = (encode(vae, images, device) - vae.config.shift_factor) * vae.config.scaling_factor
    x0 = FluxPipeline._pack_latents(x0, scenes, 16, 8, 8).to(device)  # [scenes, 16, 64]

    clip_tokenizer, clip, t5_tokenizer, t5 = build_text()
    transformer = build_transformer()
    pad = {"padding": "max_length", "truncation": True, "max_length": TEXT_LENGTH, "return_tensors": "pt"}
    clip_ids = clip_tokenizer(prompts, **pad).input_ids.to(device)
    t5_ids = t5_tokenizer(prompts, **pad).input_ids.to(device)
    model = torch.nn.ModuleDict({"transformer": transformer, "clip": clip, "t5": t5}).to(device)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9985), use_buffers=False
    )
    optimizer, scheduler = cosine(model.parameters(), 1.5e-3, steps)
    image_ids = FluxPipeline._prepare_latent_image_ids(1, 4, 4, device, torch.float32)
    text_ids = torch.zeros(TEXT_LENGTH, 3, device=device)
    losses = []
    for step in track(range(steps), "flow"):
        rows = torch.randint(scenes, (batch,))
        u = torch.sigmoid(torch.randn(batch, device=device))
        t = torch.as_tensor(shift_time(u, SHIFT))
        eps = torch.randn_like(x0[rows])
        x = (1 - t)[:, None, None] * x0[rows] + t[:, None, None] * eps
        with torch.autocast(device, torch.bfloat16):
            v = transformer(
                hidden_states=x,
                timestep=t,
                guidance=None,
                img_ids=image_ids,
                txt_ids=text_ids,
                pooled_projections=clip(clip_ids[rows]).pooler_output,
                encoder_hidden_states=t5(t5_ids[rows]).last_hidden_state,
            ).sample
        loss = (v.float() - (eps - x0[rows])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
        losses.append(loss.detach())
        if step % 1000 == 999 or step == steps - 1:
            best = dict(average.module.named_children())
            FluxPipeline(
                vae=vae,
                transformer=best["transformer"],
                text_encoder=best["clip"],
                text_encoder_2=best["t5"],
                tokenizer=clip_tokenizer,
                tokenizer_2=t5_tokenizer,
                scheduler=FlowMatchEulerDiscreteScheduler(
                    use_dynamic_shifting=True, base_shift=math.log(SHIFT), max_shift=math.log(SHIFT)
                ),
            ).save_pretrained(out)
            print(f"flow step {step + 1}: loss {torch.stack(losses[-1000:]).mean():.4f}, saved in {out}", flush=True)


def pretrain(out: Path, vae_steps: int, steps: int, scenes: int, seed: int, device: str) -> None:
    """Run the whole recipe; `out` becomes a FluxPipeline directory, written every 1,000 steps.

    At the end transformer and VAE are stored in half precision, 7 MB in all; they load as float32.
    """
    vae = train_vae(vae_steps, 16, seed, device)
    train_flow(vae, out, scenes, steps, 64, seed, device)
    pipe = FluxPipeline.from_pretrained(out)
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(out)
