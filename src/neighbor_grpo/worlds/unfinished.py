"""What a recipe that was interrupted resumes from: a file in its output directory, removed at the end."""

from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

FILE = "unfinished.pt"


def begin(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the state that a directory holds, or {"settings": settings} for an empty one.

    Raises UserError for a directory of something else, and for a state of other settings.
    """
    file = out / FILE
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        return {"settings": settings}
    import torch  # torch takes seconds to load, and mistakes should show before

    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    other = [f"{name}={value}" for name, value in state["settings"].items() if value != settings[name]]
    if other:
        raise UserError(f"{out} holds what was begun with {', '.join(other)}: give the same, or choose another --out")
    return state


def save(out: Path, state: dict[str, Any]) -> None:
    """Write the state, whole or not at all."""
    import torch

    with atomic.writing(out / FILE) as file:
        torch.save(state, file)


def end(out: Path) -> None:
    """Remove the state of a recipe that is done."""
    (out / FILE).unlink()
