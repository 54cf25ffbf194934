"""The model card of an export: what the hub shows and sorts by, how to load the weights, and how they were trained.

An export is given away: nothing in it names a place on this machine.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from neighbor_grpo.config import Prompts, training_prompts
from neighbor_grpo.config.sections import Model
from neighbor_grpo.errors import UserError, printable
from neighbor_grpo.files import atomic
from neighbor_grpo.files.frames import gallery
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.video import Video
from neighbor_grpo.prompts.prompt import prompt_hash
from neighbor_grpo.run import files
from neighbor_grpo.run.base_model import bundled_tokens, hub_id, is_bundled, licence, model_name
from neighbor_grpo.run.export_request import Request
from neighbor_grpo.run.pages import markdown_table, render
from neighbor_grpo.run.record import read_record
from neighbor_grpo.run.samples import Samples, all_samples, titled

_CARD = Path(__file__).parent / "card.md"
_PICTURES = "images"  # folder of the pictures


def write_card(request: Request, family: type[Family], parts: Sequence[str], shared: bool, folder: Path) -> None:
    """Write README.md and its pictures into the folder of an export.

    parts: files of the LoRA in the folder, or the names of the trained transformers, in the order of the pipeline.  shared:
    whether ComfyUI reads these files too.
    """
    run = request.run
    best = atomic.read_json(run / "best" / "best.json")["iteration"] if request.best else None
    lines = [line for line in files.read_metrics(run) if best is None or line["iteration"] <= best]
    samples = all_samples(run, best)
    front = _front(request, family) | {"widget": _draw(samples, folder)}
    values = {
        "front": yaml.safe_dump({k: v for k, v in front.items() if v}, allow_unicode=True, sort_keys=False, width=10**6),
        "title": printable(run.name),
        "model": model_name(request.config.model.path),
        "pictures": bool(samples),
        "parts": parts,
        "shared": shared,
        **_use(request, family, samples[-1] if samples else None),
        **_training(request, lines),
    }
    (folder / "README.md").write_text(render(_CARD, values), encoding="utf-8")


def _front(request: Request, family: type[Family]) -> dict[str, Any]:
    """Return the metadata that the hub reads; what is not known is missing or None."""
    path, lora = request.config.model.path, request.lora and request.form != "merged"
    base = hub_id(path)
    return {
        **licence(path),
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video" if family.source_images else f"text-to-{_kind(family)}",
        "base_model": base,
        "base_model_relation": base and ("adapter" if lora else "finetune"),
        "tags": [*(["lora", "template:sd-lora"] if lora else []), "diffusers", "flow-matching", "neighbor-grpo"],
    }


def _kind(family: type[Family]) -> str:
    return "video" if issubclass(family, Video) else "image"


def _draw(samples: Sequence[Samples], folder: Path) -> list[dict[str, Any]]:
    """Draw the first and the last picture of each prompt side by side; return the hub's gallery of them."""
    shown, columns = [], titled(samples)
    for n, prompt in enumerate(samples[0].prompts if samples else []):
        firsts = {title: [rows[n][:1]] for title, rows in columns.items()}
        file = folder / _PICTURES / f"{n:02d}.png"
        file.parent.mkdir(exist_ok=True)
        gallery(firsts, [prompt], min(max(samples[0].shape[-2], 128), 512)).save(file, "PNG")
        shown.append({"text": prompt, "output": {"url": file.relative_to(folder).as_posix()}})
    return shown


def _use(request: Request, family: type[Family], samples: Samples | None) -> dict[str, Any]:
    """Return the values of the section that loads the weights and draws with them."""
    model, evaluate = request.config.model, request.config.evaluate
    kind = "lora" if request.lora else "transformer"
    height, width = samples.shape[-2:] if samples else (model.height, model.width)
    arguments = {
        "prompt": samples.prompts[0] if samples else "a red circle",
        "height": height,
        "width": width,
        "num_frames": model.num_frames,
        "num_inference_steps": evaluate.num_steps or request.config.method.num_steps,
        "max_sequence_length": model.max_sequence_length or (bundled_tokens(model.path) if is_bundled(model.path) else None),
    }
    return {
        "form": kind if request.form == "diffusers" else request.form,
        "video": issubclass(family, Video),
        "starts_from_picture": bool(family.source_images),
        "bundled": model.path if request.form != "merged" and is_bundled(model.path) else None,
        "base": model_name(model.path),
        "on_hub": hub_id(model.path) is not None,
        "repo": request.push or ".",
        "transformer": model.transformer and Path(model.transformer).name,
        "arguments": ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None),
    }


def _training(request: Request, lines: Sequence[files.Figures]) -> dict[str, Any]:
    """Return the values of the section on method, rewards, data, settings and the measures before and after training."""
    config = request.config
    changes = [change for change in files.changes(lines, read_record(request.run).base) if change.measure != "gap"]
    method = {key: _without_folders(value) for key, value in config.model_dump(mode="json")["method"].items()}
    return {
        "method": method["name"],
        "trained": _trained(config.model),
        "iterations": lines[-1]["iteration"],
        "prompts_per_iteration": config.prompts.per_iteration,
        "group_size": method["group_size"],
        "rewards": ", ".join(f"{_without_folders(name)} (weight {w:g})" for name, w in config.reward.train.items()),
        "aggregate": config.reward.aggregate,
        "prompts": _describe_prompts(config.prompts),
        "learning_rate": f"{config.optimizer.lr:g}",
        "seed": config.seed,
        "table": markdown_table([["measure", "before", "after"], *map(_cells, changes)]),
        "settings": json.dumps(method, indent=2, ensure_ascii=False),
    }


def _trained(model: Model) -> str:
    """Say what was trained, and from which LoRAs on."""
    if not model.lora:
        return "all weights of the transformer"
    said = f"LoRA of rank {model.lora.rank}" if model.lora.rank else "LoRA"
    said += f", from {_without_folders(model.lora.path)} on" if model.lora.path else ""
    bases = ", ".join(f"{_without_folders(base.path)} (strength {base.strength:g})" for base in model.base_loras)
    return f"{said}, above {bases}, which these weights contain" if bases else said


def _without_folders(value: Any) -> Any:
    """Return a name without the folders of a file in it: of "win_rate:/home/me/a.py:f" "win_rate:a.py:f"."""
    return re.sub(r"[^:]*/", "", value) if isinstance(value, str) else value


def _cells(change: files.Change) -> list[str]:
    """Write a measure before and after training as a row of a table."""
    return [_without_folders(change.measure).replace("|", r"\|"), f"{change.before:.4g}", f"{change.after:.4g}"]


def _describe_prompts(source: Prompts) -> str:
    """Describe the training prompts by file, number and hash."""
    name = _without_folders(source.path.rstrip("/"))
    try:
        prompts = training_prompts(source)
    except UserError:  # the file may have been removed since the run
        return f"{name}, a file that no longer exists"
    return f"{name}, {len(prompts)} prompts, sha256 {prompt_hash(prompts)}"
