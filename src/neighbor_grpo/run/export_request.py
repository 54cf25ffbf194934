"""What an export is asked for, checked before a library is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files, hub

Form = Literal["diffusers", "comfyui", "merged"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Request:
    """Hold an export that can be written."""

    run: Path
    config: Config
    weights: Path  # directory of the run's trained weights
    form: Form
    out: Path
    best: bool = False
    push: str | None = None  # name of a repository on the hub
    private: bool = False

    @property
    def lora(self) -> bool:
        """Return whether the run trained a LoRA."""
        return self.config.model.lora is not None


def check_request(
    run: Path, form: Form, out: Path | None = None, best: bool = False, push: str | None = None, private: bool = False
) -> Request:
    """Check what an export needs.  Raises UserError; nothing has been written then.

    out: None = RUN/export-FORM.  push: the hub is asked whether it takes the export.
    """
    run = run.resolve()  # of "." the name
    config = files.read_config(run)
    weights, place = files.trained_weights(run, best), _place(out or run / f"export-{form}", run)
    request = Request(run, config, weights, form, place, best, push, private)
    if form == "comfyui" and not request.lora:
        raise UserError("--format comfyui needs a LoRA, and this run trained all weights: choose --format merged")
    other = next((key for key in ("transformer", "variant") if getattr(config.model, key)), None)
    if form == "merged" and other:
        raise UserError(f"--format merged changes the files of model.path, and the run has model.{other}: choose diffusers")
    if private and push is None:
        raise UserError("--private is for a repository on the hub: add --push NAME/REPO")
    if push is not None:
        if form == "comfyui":
            raise UserError("--push needs what diffusers loads: choose --format diffusers, whose LoRA ComfyUI reads too")
        hub.check(push, private)
    return request


def _place(out: Path, run: Path) -> Path:
    """Return where an export will be, behind links.  Raises UserError where it would replace something or cannot be written."""
    try:
        place = out.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"--out {out} cannot be followed ({error}): choose another one") from error
    if place == Path.cwd():
        raise UserError("--out is the present directory: give one that does not exist yet")
    atomic.refuse_used(out)
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} cannot be written to: choose another --out, or change its permissions")
    for folder in (parent, *parent.parents):
        if folder.is_relative_to(run) and (folder / atomic.MANIFEST).is_file():
            raise UserError(f"{folder} is complete, and nothing is written into it: choose another --out")
    return place
