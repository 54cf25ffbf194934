"""Exports: the trained weights of a run in a form that other programs load, with a model card.

diffusers   lora/ as `load_lora_weights` reads it, or transformer/ after a full fine-tune
comfyui     one .safetensors with the LoRA and an alpha beside every pair of matrices, because ComfyUI reads no metadata
merged      a whole pipeline directory, with the LoRA added into the weights
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from neighbor_grpo.config import Config, Prompts, training_prompts
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.models.experts import transformers_of
from neighbor_grpo.models.registry import family_of
from neighbor_grpo.models.video import Video
from neighbor_grpo.prompts.prompt import prompt_hash
from neighbor_grpo.run import files
from neighbor_grpo.run.pages import markdown_table, render
from neighbor_grpo.run.record import read_record
from neighbor_grpo.run.report import draw_before_after
from neighbor_grpo.run.weights import load_trained, trained_weights

Format = Literal["diffusers", "comfyui", "merged"]
_CARD = Path(__file__).parent / "card.md"


def export(run: Path, form: Format, out: Path, best: bool = False) -> Path:
    """Write the export into the directory `out` and return it.

    Raises UserError where `out` is not empty or the run cannot be exported in this form.
    """
    run, out = run.resolve(), out.resolve()  # of "." the name, of a link its target
    config, weights = files.read_config(run), trained_weights(run, best)
    if out == Path.cwd():
        raise UserError("--out is the present directory: give one that does not exist yet")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")
    if form == "comfyui" and not config.model.lora:
        raise UserError("--format comfyui needs a LoRA, and this run trained all weights: choose --format merged")
    if form == "comfyui" and issubclass(family_of(config.model.path)[0], Video):
        raise UserError("ComfyUI names the layers of video models differently: choose --format diffusers or merged")
    with atomic.directory(out, "export") as aside:
        if form == "diffusers":
            shutil.copytree(weights, aside / weights.name, ignore=shutil.ignore_patterns(atomic.MANIFEST))
        elif form == "comfyui":
            _write_comfyui(weights, aside / f"{run.name}.safetensors")
        else:
            _write_merged(run, best, aside)
        pictures = draw_before_after(run, aside / "before_after.png")
        (aside / "README.md").write_text(card(run, config, form, best, pictures), encoding="utf-8")
    return out


def _write_comfyui(lora: Path, file: Path) -> None:
    """Write a LoRA with its alpha beside every pair of matrices."""
    with safe_open(lora / "pytorch_lora_weights.safetensors", "pt") as stored:
        metadata = json.loads(stored.metadata()["lora_adapter_metadata"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, not a dict
    alpha = torch.tensor(float(metadata["transformer.lora_alpha"]))
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    save_file(tensors | {f"{layer}.alpha": alpha.clone() for layer in layers}, file)


def _write_merged(run: Path, best: bool, directory: Path) -> None:
    """Write the whole pipeline, with a LoRA added into its weights."""
    model = load_trained(None, run, "cpu", best=best).model
    pipe: Any = model.pipe  # the methods for LoRAs are those of mixins that diffusers' base class does not declare
    if files.read_config(run).model.lora:
        pipe.fuse_lora(components=list(transformers_of(model.transformer)))
        pipe.unload_lora_weights()
    pipe.save_pretrained(directory)


def card(run: Path, config: Config, form: Format, best: bool, pictures: bool) -> str:
    """Write a model card: method, rewards, data, settings, and the measures before and after training."""
    lines = files.read_metrics(run)
    if best:
        iteration = atomic.read_json(run / "best" / "best.json")["iteration"]
        lines = [line for line in lines if line["iteration"] <= iteration]
    changes = [change for change in files.changes(lines, read_record(run).base) if change.measure != "gap"]
    lora, rewards = config.model.lora, config.reward.train.items()
    method = config.model_dump(mode="json")["method"]
    values = {
        "title": run.name,
        "model": config.model.path,
        "method": method["name"],
        "form": form,
        "trained": f"LoRA of rank {lora.rank}" if lora else "all weights of the transformer",
        "iterations": lines[-1]["iteration"],
        "prompts_per_iteration": config.prompts.per_iteration,
        "group_size": method["group_size"],
        "rewards": ", ".join(f"{name} (weight {weight:g})" for name, weight in rewards),
        "aggregate": config.reward.aggregate,
        "prompts": _describe_prompts(config.prompts),
        "learning_rate": f"{config.optimizer.lr:g}",
        "seed": config.seed,
        "table": markdown_table([["measure", "before", "after"], *map(_cells, changes)]),
        "settings": json.dumps(method, indent=2),
        "pictures": pictures,
    }
    return render(_CARD, values)


def _cells(change: files.Change) -> list[str]:
    """Write a measure before and after training as a row of a table."""
    return [change.measure, f"{change.before:.4g}", f"{change.after:.4g}"]


def _describe_prompts(source: Prompts) -> str:
    """Describe the training prompts by file, number and hash."""
    try:
        prompts = training_prompts(source)
    except UserError:  # the file may have been removed since the run
        return f"{Path(source.path).name}, a file that no longer exists"
    return f"{Path(source.path).name}, {len(prompts)} prompts, sha256 {prompt_hash(prompts)}"
