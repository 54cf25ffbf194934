"""A model together with what it was taught: a run's last or best weights, or any LoRA in diffusers' layout."""

from importlib.metadata import version
from pathlib import Path

import torch

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.lora import load_all, load_lora
from neighbor_grpo.models.registry import FlowModel, load_model, pick_device, pick_dtype
from neighbor_grpo.run.files import config_of, resume_command


def load_base(config: Config, device: torch.device) -> FlowModel:
    """The model that a run starts from."""
    m = config.model
    return load_model(m.path, device, pick_dtype(m.dtype, device), **m.drawing())


def load_trained(
    path: str | None, run: Path | None, device: str, best: bool = False, lora: str | None = None, **drawing
) -> tuple[FlowModel, dict]:
    """A model, with what a run taught it (at its end, or where it was best) or a LoRA; and what it is, in words.

    drawing: keys of drawing.Drawing; those that are None are the run's, or the defaults.
    """
    where = pick_device(device)
    if best and not run:
        raise UserError("--best is a run's: give --run too")
    if lora and run:
        raise UserError("--lora and --run are two ways to say what was learned: give one")
    config = config_of(run) if run else None
    path = path or (config.model.path if config else "scenes")
    known = config.model.drawing() if config else {}
    drawing = known | {key: value for key, value in drawing.items() if value is not None}
    model = load_model(path, where, pick_dtype("auto", where), **drawing)
    if config:
        export = learned_in(run, best)
        if config.model.lora:
            load_lora(model.pipe, model.transformer, export)
        else:
            load_all(model.transformer, export)
    if lora:
        try:
            load_lora(model.pipe, model.transformer, lora)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"no LoRA for this model at {lora!r}: {str(error).strip().splitlines()[0]}") from error
    return model, {
        "model": path,
        "run": str(run) if run else None,
        "best": best,
        "lora": lora,
        "guidance_scale": model.guidance_scale,
        "cfg": model.cfg,
        "height": model.height,
        "width": model.width,
        **({"num_frames": model.frames} if model.frames else {}),
        "dtype": str(model.dtype),
        "device": str(where),
        "version": version("neighbor-grpo"),
    }


def learned_in(run: Path, best: bool = False) -> Path:
    """Where a run's weights lie, a LoRA's or all: those at its end, or where it was best."""
    export = (run / "best" if best else run) / ("lora" if config_of(run).model.lora else "transformer")
    if not export.is_dir():
        missing = "has kept no best weights" if best else f"is not finished: go on with {resume_command(run)}"
        raise UserError(f"{run} {missing}")
    return export
