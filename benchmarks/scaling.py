"""Estimated time and cost of a whole training on 8, 32 and 256 GPUs.

    python benchmarks/scaling.py [--rate 790] [--rollout 0.60] [--update 0.50] [--link 50] [--price 3]

Counted: the FLOPs of a forward, a forward-backward and a decode (by running the model in its true size on the meta device),
the calls of an iteration, and the bytes that ranks exchange.  Assumed: the bf16 matrix rate (TFLOP/s), the share of it that
the phases reach, the link between ranks (GB/s each) and the price; replace them by what benchmarks/true_size.py measures on
your GPUs.
"""

import argparse
from math import ceil

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from neighbor_grpo.config import load_config
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.family import ATTENTION
from neighbor_grpo.planning.kernels import Kernels
from neighbor_grpo.planning.plan import plan

ROWS = {
    "neighbor_8": "Neighbor, 8 steps",
    "neighbor_25": "Neighbor, 25 steps",
    "mix_grpo": "MixGRPO (25/14)",
    "dance_grpo": "DanceGRPO (25/14)",
}
META = torch.device("meta")


def sizes(model: torch.nn.Module, **inputs) -> tuple[float, float, float]:
    """Count (parameters, those of a LoRA of rank 32, FLOPs of a forward)."""
    with torch.no_grad(), Kernels("cuda"), FlopCounterMode(display=False) as counter:
        model(**inputs)
    parameters = sum(p.numel() for p in model.parameters())
    add_lora(model, 32, 32, list(ATTENTION))
    return parameters, sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops()


def flux(side: int) -> tuple[float, float, float]:
    """Count FLUX.1-dev at side x side pixels."""
    tokens, kind = (side // 16) ** 2, {"dtype": torch.bfloat16}
    with META:
        return sizes(
            FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16).requires_grad_(False),
            hidden_states=torch.empty(1, tokens, 64, **kind),
            timestep=torch.empty(1, **kind),
            guidance=torch.empty(1, **kind),
            pooled_projections=torch.empty(1, 768, **kind),
            encoder_hidden_states=torch.empty(1, 512, 4096, **kind),
            txt_ids=torch.empty(512, 3),
            img_ids=torch.empty(tokens, 3),
        )


def qwen(side: int) -> tuple[float, float, float]:
    """Count Qwen-Image at side x side pixels and 512 tokens of text."""
    rows, kind = side // 16, {"dtype": torch.bfloat16}
    with META:
        return sizes(
            QwenImageTransformer2DModel().to(torch.bfloat16).requires_grad_(False),
            hidden_states=torch.empty(1, rows * rows, 64, **kind),
            timestep=torch.empty(1, **kind),
            encoder_hidden_states=torch.empty(1, 512, 3584, **kind),
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, rows, rows)]],
        )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("rate", 790, "TFLOP/s"),
        ("rollout", 0.6, "share"),
        ("update", 0.5, "share"),
        ("link", 50, "GB/s between ranks"),
        ("price", 3, "of a GPU hour"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, help=text)
    a = parser.parse_args()
    models = {"FLUX.1-dev, 720 x 720": flux(720), "Qwen-Image, 1024 x 1024": qwen(1024)}
    for title, (parameters, lora, forward) in models.items():
        print(
            f"\n{title}: {parameters / 1e9:.1f} B parameters, {lora / 1e6:.0f} M in a LoRA of rank 32, "
            f"{forward / 1e12:.1f} TFLOP a forward\n"
        )
        print(
            "| method | GPUs | prompts | seconds an iteration, LoRA | hours | GPU hours | cost | exchange | "
            "seconds an iteration, all weights | exchange by FSDP2 |"
        )
        print("|---" * 10 + "|")
        for name, method in ROWS.items():
            config = load_config(presets=[f"flux_dev/{name}"])
            work, groups = plan(config), config.prompts.per_iteration
            for gpus in (8, 32, 256):
                prompts = max(groups, gpus)  # a group is one GPU's
                share = ceil(prompts / gpus) / groups  # of the plan's work, on the busiest GPU
                rollout = work.forwards * share * forward / (a.rate * 1e12 * a.rollout)
                once = work.forward_backwards * share * forward / (a.rate * 1e12 * a.update)
                update, full = 3 * once, 4 * once  # checkpointed: twice forward, backward to the inputs, and to the weights
                seconds = rollout + update
                reduced = work.updates * 2 * 4 * lora / (a.link * 1e9)
                rows = config.batch.update
                passes = work.forwards * share / config.batch.rollout + 2 * work.forward_backwards * share / rows
                sharded = (passes * 2 * parameters + work.updates * 4 * parameters) / (a.link * 1e9)
                hours = config.iterations * seconds / 3600
                print(
                    f"| {method} | {gpus} | {prompts} | {seconds:.1f} ({rollout:.1f} + {update:.1f}) | {hours:.1f} | "
                    f"{hours * gpus:,.0f} | {hours * gpus * a.price:,.0f} | {reduced:.2f} s | "
                    f"{rollout + full:.1f} | {sharded:.1f} s |"
                )


if __name__ == "__main__":
    main()
