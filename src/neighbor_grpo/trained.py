"""A model together with what it was taught: a run's last or best weights, or any LoRA in diffusers' layout."""

from importlib.metadata import version
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.models import FlowModel, load_model, pick_device, pick_dtype
from neighbor_grpo.rundir import config_of, resume_command


def load_trained(
    path: str | None, run: Path | None, device: str,
    height: int | None = None, width: int | None = None, guidance_scale: float = 3.5,
    best: bool = False, lora: str | None = None, cfg: float | None = None,
) -> tuple[FlowModel, dict]:
    """A model, with what a run taught it (at its end, or where it was best) or a LoRA; and what it is, in words."""
    where = pick_device(device)
    if best and not run:
        raise UserError("--best is a run's: give --run too")
    if lora and run:
        raise UserError("--lora and --run are two ways to say what was learned: give one")
    config, length = config_of(run) if run else None, None
    if config:
        path, height, width = path or config.model.path, height or config.model.height, width or config.model.width
        guidance_scale, length = config.model.guidance_scale, config.model.max_sequence_length
        cfg = config.model.cfg if cfg is None else cfg
    model = load_model(
        path or "scenes", where, pick_dtype("auto", where), height, width, guidance_scale, length, 1.0 if cfg is None else cfg
    )
    if config:
        export = learned_in(run, best)
        if config.model.lora:
            model.pipe.load_lora_weights(export)
        else:
            model.transformer.load_state_dict(type(model.transformer).from_pretrained(export).state_dict())
    if lora:
        try:
            model.pipe.load_lora_weights(lora, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"no LoRA for this model at {lora!r}: {str(error).strip().splitlines()[0]}") from error
    return model, {
        "model": path or "scenes", "run": str(run) if run else None, "best": best, "lora": lora,
        "guidance_scale": guidance_scale, "cfg": model.cfg, "height": model.height, "width": model.width,
        "dtype": str(model.dtype), "device": str(where), "version": version("neighbor-grpo"),
    }


def learned_in(run: Path, best: bool = False) -> Path:
    """Where a run's weights lie, a LoRA's or all: those at its end, or where it was best."""
    export = (run / "best" if best else run) / ("lora" if config_of(run).model.lora else "transformer")
    if not export.is_dir():
        missing = "has kept no best weights" if best else f"is not finished: go on with {resume_command(run)}"
        raise UserError(f"{run} {missing}")
    return export
