"""A model of FLUX.1-dev's size on a GPU, with random weights: seconds, matrix rate and memory of an iteration's phases.

    python benchmarks/flux_size.py [--iterations 3] [CONFIG ...] [key=value ...]

CONFIG: files of configs/flux_dev, each a row of the table (default: the paper's three rows, DanceGRPO and MixGRPO), over
configs/flux_dev/base.yaml with one prompt a GPU.  Rewards cost nothing here: pictures are scored by their brightness.
Utilisation is FLOPs over seconds, over the bf16 matrix rate measured on the same device.  key=value: e.g. model.height=512
model.compile=true model.fp8_rollout=true.  --tiny: a small model instead, on any device, to try the benchmark itself.
"""

import argparse
import statistics
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from neighbor_grpo.collector import Collector
from neighbor_grpo.config import Config, load_config
from neighbor_grpo.data import Prompt
from neighbor_grpo.drawing import Drawing
from neighbor_grpo.footprint import matrix_rate
from neighbor_grpo.learner import Learner
from neighbor_grpo.models import move
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.rewards.panel import Panel
from neighbor_grpo.watch import Phases

HERE = Path(__file__).parent.parent / "configs" / "flux_dev"
ROWS = ["neighbor_8", "neighbor_16", "neighbor_25", "mix_grpo", "dance_grpo"]
TRANSFORMER = {"guidance_embeds": True}  # diffusers' defaults are FLUX.1's
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TINY = {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)}
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def model_of(config: Config, device: torch.device, dtype: torch.dtype, tiny: bool) -> Flux:
    """Random weights, made on the device; no text encoders, so conditioning is blank."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        transformer = FluxTransformer2DModel(**TRANSFORMER | (TINY if tiny else {}))
        vae = AutoencoderKL(**VAE | (TINY_VAE if tiny else {}))
    torch.set_default_dtype(torch.float32)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = FluxPipeline(scheduler, vae, None, None, None, None, transformer)
    drawing = config.model.model_dump(include=set(Drawing.model_fields)) | {"max_sequence_length": 512}
    return Flux(pipe, device, dtype, Drawing(**drawing))


def row(name: str, config: Config, iterations: int, tiny: bool) -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    device = accelerator.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, phases = model_of(config, device, dtype, tiny), Phases(device)
    learner = Learner(model, config, accelerator)
    cond = model.blank(1)
    collector = Collector(
        model, lambda prompts, coming: move(cond, device), [Prompt("")],
        Panel({"brightness": lambda images, prompts, metadata: images.mean((1, 2, 3))}), range(1), config, accelerator, phases,
    )
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for n in range(iterations + 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        phases.clear()
        got = collector(n)
        with phases("update"):
            rewards = got.rewards[0].float()
            adv = config.method.credit(got.tree, rewards, rewards)
            updates = config.method.updates(got.tree, adv, [torch.Generator().manual_seed(n)], n)
            for decisions in updates:
                learner.step(decisions, got.cond)
        if n:  # the first warms up, and compiles
            for phase in ("rollout", "decode", "update"):
                seconds.setdefault(phase, []).append(phases[phase])
            seconds.setdefault("all", []).append(sum(phases[phase] for phase in ("rollout", "decode", "update")))
            if device.type == "cuda":
                peaks["all"] = max(peaks.get("all", 0.0), torch.cuda.max_memory_allocated() / 2**30)
    report(name, config, model, got.tree.evaluations, sum(map(len, updates)), seconds, peaks, device, dtype)


def report(name, config, model, forwards, backwards, seconds, peaks, device, dtype) -> None:
    forward = flops(model, 1)  # of a row
    again = 4 if config.model.gradient_checkpointing else 3  # a backward is two forwards, checkpointing one more
    rate = matrix_rate(device, dtype)
    share = {
        "rollout": forwards * forward / statistics.median(seconds["rollout"]) / rate,
        "update": backwards * again * forward / statistics.median(seconds["update"]) / rate,
    }
    spread = "{:.2f} ({:.2f} to {:.2f})".format(
        statistics.median(seconds["all"]), min(seconds["all"]), max(seconds["all"])
    )
    phases = ", ".join(f"{phase} {statistics.median(seconds[phase]):.2f}" for phase in ("rollout", "decode", "update"))
    print(f"| {name} | {forwards} | {backwards} | {spread} | {phases} | {share['rollout']:.0%} | {share['update']:.0%} | "
          + (f"{peaks['all']:.1f} GiB" if peaks else "not a GPU") + " |", flush=True)


def flops(model: Flux, rows: int) -> float:
    """Of a forward, counted on the device itself."""
    from torch.utils.flop_counter import FlopCounterMode

    x = model.noise(rows, torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.velocity(x, 0.5, model.blank(rows))
    return counter.get_total_flops() / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("what", nargs="*", metavar="CONFIG | key=value")
    arguments = parser.parse_args()
    overrides = [item for item in arguments.what if "=" in item]
    files = [Path(item) for item in arguments.what if "=" not in item] or [HERE / f"{name}.yaml" for name in ROWS]
    small = ["model.height=64", "model.width=64"] if arguments.tiny else []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this machine's CPU"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(f"{name}: {matrix_rate(device, dtype) / 1e12:.3g} TFLOP/s in {str(dtype)[6:]} matrix products, torch {torch.__version__}")
    print("| | forwards | forward-backwards | seconds an iteration | of these | rollout MFU | update MFU | peak allocated |")
    print("|---" * 8 + "|")
    for file in files:
        own = ["prompts.per_iteration=1", "iterations=100", *small]
        row(file.stem, load_config([HERE / "base.yaml", file], [*own, *overrides]), arguments.iterations, arguments.tiny)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
