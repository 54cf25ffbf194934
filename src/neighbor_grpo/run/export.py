"""What a run has learned, in the form that others load, with a card that says where it comes from.

diffusers   lora/ as `load_lora_weights` reads it, or transformer/ after a full fine-tune
comfyui     one .safetensors of the LoRA, alpha written beside every pair of matrices: its loader reads no metadata
merged      a whole pipeline directory, the LoRA added into the weights
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.directories import written_whole
from neighbor_grpo.models.experts import parts
from neighbor_grpo.models.registry import adapter_of
from neighbor_grpo.models.video import Video
from neighbor_grpo.prompts.reading import Prompt, prompt_hash, read_prompts
from neighbor_grpo.run import files
from neighbor_grpo.run.weights import learned_in, load_trained

Format = Literal["diffusers", "comfyui", "merged"]


def export(run: Path, form: Format, out: Path, best: bool = False) -> Path:
    """Write `out`, a directory; what there is of it.  Raises UserError where it is not empty or the run has no such form."""
    config, weights = files.config_of(run), learned_in(run, best)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")
    if form == "comfyui" and not config.model.lora:
        raise UserError("comfyui takes LoRAs, and this run trained all weights: --format merged")
    if form == "comfyui" and issubclass(adapter_of(config.model.path)[0], Video):
        raise UserError("ComfyUI knows the layers of video models by other names: --format diffusers or merged")
    with written_whole(out) as aside:
        if form == "diffusers":
            shutil.copytree(weights, aside / weights.name)
        elif form == "comfyui":
            _comfyui(weights, aside / f"{run.name}.safetensors")
        else:
            model, _ = load_trained(None, run, "cpu", best=best)
            if config.model.lora:
                model.pipe.fuse_lora(components=[name for name, _, _ in parts(model.transformer)])
                model.pipe.unload_lora_weights()
            model.pipe.save_pretrained(aside)
        (aside / "README.md").write_text(card(run, config, form, best), encoding="utf-8")
        pictures = run / "samples" / "before_after.png"
        if pictures.is_file():
            shutil.copy(pictures, aside / "before_after.png")
    return out


def _comfyui(lora: Path, file: Path) -> None:
    with safe_open(lora / "pytorch_lora_weights.safetensors", "pt") as stored:
        metadata = json.loads(stored.metadata()["lora_adapter_metadata"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, no dict
    alpha = torch.tensor(float(metadata["transformer.lora_alpha"]))
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    save_file(tensors | {f"{layer}.alpha": alpha.clone() for layer in layers}, file)


def card(run: Path, config: Config, form: Format, best: bool) -> str:
    """A model card: method, rewards, data, settings, what was measured before and after, pictures."""
    lines = [line for line in files.metrics(run) if any(key.startswith("eval/") for key in line)]
    first, last = lines[0], lines[-1]
    if best:
        iteration = json.loads((run / "best" / "best.json").read_text())["iteration"]
        last = next(line for line in lines if line["iteration"] == iteration)
    table = [
        f"| {key[5:]} | {first[key]:.4g} | {last[key]:.4g} |"
        for key in first
        if key.startswith("eval/") and key in last and key != "eval/gap"
    ]
    prompts = _prompts(config.prompts.path)
    data = f"{len(prompts)} prompts, sha256 {prompt_hash(prompts)}" if prompts else "the file is no longer there"
    settings = json.dumps(config.method.__dict__, indent=2, default=str)
    return "\n".join(
        [
            "---",
            f"base_model: {config.model.path}",
            "library_name: diffusers",
            "tags: [flow-matching, neighbor-grpo]",
            "---",
            f"# {run.name}",
            "",
            f"{config.model.path} aligned by `{config.method.name}` with neighbor-grpo; form: {form}.",
            "",
            f"- trained: {f'LoRA of rank {config.model.lora.rank}' if config.model.lora else 'all weights of the transformer'}, "
            f"{last['iteration']} iterations of {config.prompts.per_iteration} prompts x {config.method.group_size} samples",
            f"- rewards: {', '.join(f'{name} (weight {weight:g})' for name, weight in config.reward.train.items())}, "
            f"{config.reward.aggregate} summed",
            f"- prompts: {Path(config.prompts.path).name}, {data}",
            f"- optimizer: AdamW, rate {config.optimizer.lr:g}; seed {config.seed}",
            "",
            "![before and after](before_after.png)",
            "",
            "Held-out prompts, the same noise:",
            "",
            "| | before | after |",
            "|---|---|---|",
            *table,
            "",
            "Settings of the method:",
            "",
            "```json",
            settings,
            "```",
            "",
        ]
    )


def _prompts(path: str) -> list[Prompt]:
    """No prompts where the file is gone."""
    try:
        return read_prompts(path)
    except UserError:
        return []
