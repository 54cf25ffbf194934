"""Seconds, matrix rate and memory of each phase of an iteration, for published models in their true size with random weights.

    python benchmarks/true_size.py [--model flux_dev] [--iterations 3] [ROW ...] [key=value ...]

--model: a preset of a model: flux_dev, sd35_medium, qwen_image, z_image_turbo, wan21_t2v, ... (`neighbor-grpo presets`).
ROW: a preset of a method, or of FLUX.1-dev a row of the paper's table (default: the paper's three rows, DanceGRPO and
MixGRPO), with one prompt for each GPU and blank conditioning.  The reward is the brightness of a picture, which costs nothing.
Planned: memory of the largest phase but the encoders', which have no weights here.  Utilisation (MFU): the plan's FLOPs per
second over the bf16 matrix rate measured on the same device.
key=value: for instance model.height=512 model.quantize=nf4, model.compile=true, model.fp8_rollout=true.
--profile: also the share of the time in which the device works, the host's waits for it, and the kernels that take most.
--tiny: one layer of each kind with two heads instead, at 64 x 64 pixels, on any device, to try the benchmark itself.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from presets import BUILT  # noqa: E402

from neighbor_grpo.config import Config, load_config, preset_names, read_preset  # noqa: E402
from neighbor_grpo.console import silence_libraries  # noqa: E402
from neighbor_grpo.models.backends import choose_attention, leave_out_cudnn  # noqa: E402
from neighbor_grpo.models.family import Family  # noqa: E402
from neighbor_grpo.models.quantization import quantization, quantize_loaded  # noqa: E402
from neighbor_grpo.models.registry import Parts  # noqa: E402
from neighbor_grpo.models.settings import ModelSettings  # noqa: E402
from neighbor_grpo.planning.estimate import estimate  # noqa: E402
from neighbor_grpo.planning.machine import matrix_rate  # noqa: E402
from neighbor_grpo.prompts.prompt import Prompt  # noqa: E402
from neighbor_grpo.rewards.scorer import make_scorer  # noqa: E402
from neighbor_grpo.rewards.set import RewardSet  # noqa: E402
from neighbor_grpo.training.collector import Collector  # noqa: E402
from neighbor_grpo.training.learner import Learner  # noqa: E402
from neighbor_grpo.training.phases import Phases  # noqa: E402

PHASES = ("rollout", "decode", "update")
ROWS = ["neighbor_8", "neighbor_16", "neighbor_25", "mix_grpo", "dance_grpo"]
DEPTHS = ("num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers")


def model_of(config: Config, device: torch.device, dtype: torch.dtype) -> Family:
    """Build the model with random weights, made on the device; its text encoders have none."""
    chosen = ModelSettings(**config.model.model_settings())
    parts = Parts.of(config.model.path, chosen, weights=False)

    def component(kind: Any, name: str) -> Any:
        place = parts.place / name
        if issubclass(kind, PreTrainedModel):
            with torch.device("meta"):
                return kind(kind.config_class.from_pretrained(place))
        if not issubclass(kind, ModelMixin):
            return kind.from_pretrained(place)
        torch.set_default_dtype(dtype)
        with device:
            module = kind.from_config(kind.load_config(place))
        torch.set_default_dtype(torch.float32)
        if not chosen.quantize or name == "vae":
            return module
        config = quantization(chosen.quantize, dtype)[name]
        if chosen.quantize != "nf4":
            quantize_loaded(module, config)
            return module
        module.save_pretrained(place)  # bitsandbytes packs what it reads from files
        return kind.from_pretrained(place, dtype=dtype, quantization_config=config)

    torch.manual_seed(0)
    model = parts.build(component, device, dtype, chosen)
    leave_out_cudnn()
    if chosen.attention:
        choose_attention(model.transformer, chosen.attention)
    return model


def make_tiny(place: Path) -> None:
    """Leave one layer of each kind, of two heads, in the transformers of a pipeline's configurations."""
    for file in place.glob("transformer*/config.json"):
        config = json.loads(file.read_text())
        config |= {key: 1 for key in DEPTHS if config.get(key)}
        config |= {key: 2 for key in ("num_attention_heads",) if key in config}
        if "dual_attention_layers" in config:
            config |= {"dual_attention_layers": [0], "caption_projection_dim": 2 * config["attention_head_dim"]}
        file.write_text(json.dumps(config))


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Print where the device's time goes, and how often the host waits for it."""
    if not wanted:
        yield
        return
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    began = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as profile:
        yield
    wall, events = time.perf_counter() - began, profile.key_averages()
    kernels = sorted((e for e in events if e.device_type.name == "CUDA"), key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    waits = {e.key: e.count for e in events if "Synchronize" in e.key}
    copies = {e.key: (e.count, round(e.self_device_time_total / 1e6, 3)) for e in kernels if "Memcpy" in e.key}
    print(f"profiled iteration: {wall:.2f} s, device busy {busy / wall:.0%}; waits of the host {waits}; copies {copies}")
    for event in kernels[:12]:
        print(f"    {event.self_device_time_total / 1e6 / busy:6.1%} {event.count:6} x {event.key[:100]}")


def row(name: str, config: Config, iterations: int, profile: bool) -> None:
    """Measure one configuration and print its row of the table."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # the plan takes a while, on the CPU
    planned = pool.submit(estimate, config, "cuda" if torch.cuda.is_available() else "cpu")
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    device = accelerator.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, phases = model_of(config, device, dtype), Phases(device)
    learner = Learner(model, config, accelerator)
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"train": {"brightness": 1.0}})})
    cond = model.blank(1).to(device)
    brightness = make_scorer("brightness", lambda images, prompts, metadata: images.mean((1, 2, 3)))
    collector = Collector(
        model,
        SimpleNamespace(encode=lambda prompts, coming: cond),
        [Prompt("")],
        RewardSet({"brightness": brightness}),
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
        with profiled(profile and n == iterations):
            experience = collector.experience(n)
            with phases.time("update"):
                for rows in experience.updates:
                    learner.step(rows, experience.cond)
        if n:  # the first warms up, and compiles
            for phase in PHASES:
                seconds.setdefault(phase, []).append(phases.seconds[phase])
            seconds.setdefault("all", []).append(sum(phases.seconds[phase] for phase in PHASES))
            peak = max(peak, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)
    held, trained = planned.result(), sum(map(len, experience.updates))
    forwards = round(experience.figures["nfe_old"] * config.method.group_size)
    flops = held.flops(forwards, config.method.group_size, trained)
    median = {phase: statistics.median(times) for phase, times in seconds.items()}
    share = {phase: work / median[phase] / matrix_rate(device, dtype) for phase, work in flops.items()}
    plan = max(map(held.bytes, held.phases.keys() - {"encode"}))
    memory = f"{peak / 1e9:.2f} GB" if peak else "not a GPU"
    print(
        f"| {name} | {forwards} | {trained} | {median['all']:.2f} ({min(seconds['all']):.2f} to "
        f"{max(seconds['all']):.2f}) | {', '.join(f'{phase} {median[phase]:.2f}' for phase in PHASES)} | "
        f"{share['rollout']:.0%} | {share['update']:.0%} | {memory} | {plan / 1e9:.2f} GB |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flux_dev")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
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
        module, _, function = BUILT[read_preset(arguments.model).values["model"]["path"]].partition(".")
        getattr(__import__(module), function)(Path(place))
        if arguments.tiny:
            make_tiny(Path(place))
        own = [f"model.path={place}", "prompts.per_iteration=1", "iterations=100", *small]
        for name in rows:
            one = f"{arguments.model}/{name}"
            presets = [one] if one in preset_names() else [name, arguments.model]
            config = load_config(None, [*own, *overrides], presets)
            row(f"{arguments.model}, {name}", config, arguments.iterations, arguments.profile)
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
