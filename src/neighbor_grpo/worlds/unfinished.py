"""What a recipe that was interrupted resumes from: a directory in its output directory, removed at the end."""

from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

NAME = "unfinished"
_KIND = "unfinished recipe"


def begin(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the state that a directory holds, or {"settings": settings} for an empty one.

    Raises UserError for a directory of something else, for a damaged state and for one of other settings.
    """
    place = out / NAME
    if place.exists() or (out / f".{NAME}.old").exists():  # killed, perhaps between two renames; nothing of others is touched
        atomic.tidy(out)
    if not place.exists():
        atomic.refuse_used(out)
        out.mkdir(parents=True, exist_ok=True)
        return {"settings": settings}
    atomic.check(place, _KIND)
    import torch  # torch takes seconds to load, and mistakes should show before

    state: dict[str, Any] = torch.load(place / "state.pt", map_location="cpu", weights_only=True)
    other = [f"{name}={value}" for name, value in state["settings"].items() if value != settings.get(name)]
    if other:
        raise UserError(f"{out} holds what was begun with {', '.join(other)}: give the same, or choose another --out")
    return state


def save(out: Path, state: dict[str, Any]) -> None:
    """Write the state, whole or not at all."""
    import torch

    with atomic.directory(out / NAME, _KIND) as aside:
        torch.save(state, aside / "state.pt")


def end(out: Path) -> None:
    """Remove the state of a recipe that is done."""
    atomic.remove(out / NAME)
