"""Seconds, matrix rate and memory of each phase of an iteration, for a model of FLUX.1-dev's size with random weights.

    python benchmarks/flux_size.py [--iterations 3] [ROW ...] [key=value ...]

ROW: a preset flux_dev/ROW, a row of the table (default: the paper's three rows, DanceGRPO and MixGRPO), with one prompt for
each GPU and blank conditioning.  The reward is the brightness of a picture, which costs nothing.  Utilisation (MFU): the
plan's FLOPs per second over the bf16 matrix rate measured on the same device.
key=value: for instance model.height=512 model.quantize=nf4, model.compile=true, model.fp8_rollout=true.
--tiny: a small model instead, on any device, to try the benchmark itself.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from neighbor_grpo.config import Config, load_config
from neighbor_grpo.console import silence_libraries
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.machine import matrix_rate
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.scorer import make_scorer
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.training.collector import Collector
from neighbor_grpo.training.learner import Learner
from neighbor_grpo.training.phases import Phases

PHASES = ("rollout", "decode", "update")
ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
ROWS = ["neighbor_8", "neighbor_16", "neighbor_25", "mix_grpo", "dance_grpo"]
TRANSFORMER = {"guidance_embeds": True}  # diffusers' defaults are FLUX.1's
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TINY = {
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def parts(device: torch.device, dtype: torch.dtype, tiny: bool) -> dict:
    """Build the components of a FluxPipeline without text encoders, with random weights made on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        made = {
            "transformer": FluxTransformer2DModel(**TRANSFORMER | (TINY if tiny else {})),
            "vae": AutoencoderKL(**VAE | (TINY_VAE if tiny else {})),
        }
    torch.set_default_dtype(torch.float32)
    return made | {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)} | dict.fromkeys(ENCODERS)


def configurations(place: Path, tiny: bool) -> None:
    """Write the directory of the pipeline without weights, from which the plan is made."""
    index = {"_class_name": "FluxPipeline"}
    for name, part in parts(torch.device("meta"), torch.bfloat16, tiny).items():
        index[name] = ["diffusers", type(part).__name__] if part is not None else [None, None]
        if part is not None:
            part.save_config(place / name)
    (place / "model_index.json").write_text(json.dumps(index))


def model_of(config: Config, device: torch.device, dtype: torch.dtype, tiny: bool) -> Family:
    """Build the model; quantized weights are loaded from files as in a run (24 GB, written once)."""
    settings, place = config.model.model_settings(), Path(config.model.path)
    if not config.model.quantize:
        return Flux(FluxPipeline(**parts(device, dtype, tiny)), device, dtype, ModelSettings(**settings))
    if not any(place.glob("transformer/*.safetensors")):
        FluxPipeline(**parts(device, dtype, tiny)).save_pretrained(place)
    return load_model(place, device, dtype, **settings)


def row(name: str, config: Config, iterations: int, tiny: bool) -> None:
    """Measure one configuration and print its row of the table."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    device = accelerator.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, phases = model_of(config, device, dtype, tiny), Phases(device)
    learner = Learner(model, config, accelerator)
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"train": {"brightness": 1.0}})})
    cond = model.blank(1).to(device)
    collector = Collector(
        model,
        SimpleNamespace(encode=lambda prompts, coming: cond),
        [Prompt("")],
        RewardSet({"brightness": make_scorer("brightness", lambda images, prompts, metadata: images.mean((1, 2, 3)))}),
        range(1),
        config,
        accelerator,
        phases,
    )
    seconds: dict[str, list[float]] = {}
    peak = 0
    for n in range(iterations + 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        phases.clear()
        experience = collector.experience(n)
        with phases.time("update"):
            for rows in experience.updates:
                learner.step(rows, experience.cond)
        if n:  # the first warms up, and compiles
            for phase in PHASES:
                seconds.setdefault(phase, []).append(phases.seconds[phase])
            seconds.setdefault("all", []).append(sum(phases.seconds[phase] for phase in PHASES))
            peak = max(peak, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)
    held, trained = estimate(config, device.type), sum(map(len, experience.updates))
    forwards = round(experience.figures["nfe_old"] * config.method.group_size)
    flops = held.flops(forwards, config.method.group_size, trained)
    median = {phase: statistics.median(times) for phase, times in seconds.items()}
    share = {phase: work / median[phase] / matrix_rate(device, dtype) for phase, work in flops.items()}
    memory = f"{peak / 1e9:.2f} GB" if peak else "not a GPU"
    print(
        f"| {name} | {forwards} | {trained} | {median['all']:.2f} ({min(seconds['all']):.2f} to "
        f"{max(seconds['all']):.2f}) | {', '.join(f'{phase} {median[phase]:.2f}' for phase in PHASES)} | "
        f"{share['rollout']:.0%} | {share['update']:.0%} | {memory} | {held.peak / 1e9:.1f} GB |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("what", nargs="*", metavar="ROW | key=value")
    arguments = parser.parse_args()
    overrides = [item for item in arguments.what if "=" in item]
    rows = [item for item in arguments.what if "=" not in item] or ROWS
    small = ["model.height=64", "model.width=64"] if arguments.tiny else []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    silence_libraries()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this machine's CPU"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = matrix_rate(device, dtype) / 1e12
    print(f"{name}: {rate:.3g} TFLOP/s in {str(dtype)[6:]} matrix products, torch {torch.__version__}")
    print(
        "| | forwards | forward-backwards | seconds an iteration | of these | rollout MFU | update MFU | peak allocated "
        "| planned |"
    )
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as place:
        configurations(Path(place), arguments.tiny)
        own = [f"model.path={place}", "model.max_sequence_length=512", "prompts.per_iteration=1", "iterations=100", *small]
        for name in rows:
            config = load_config(None, [*own, *overrides], [f"flux_dev/{name}"])
            row(name, config, arguments.iterations, arguments.tiny)
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
