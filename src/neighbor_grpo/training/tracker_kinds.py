"""The trackers: how each begins or resumes its run, and how it shows pictures; accelerate.tracking sends figures and settings.

Each is an optional package, which is imported when its run begins.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    SwanLabTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from torch import Tensor

from neighbor_grpo.config import Trackers
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import strips, to_pil


@dataclass(frozen=True)
class Start:
    """Say which run of a tracker begins, or is resumed."""

    settings: Trackers
    config: Mapping[str, Any]  # settings of the run; what a resumed run changes stands in run.json
    name: str  # of the run, for people
    id: str  # of the run, for the tracker
    folder: Path  # of the run's files, RUN/trackers
    resumed: bool
    following: int  # the first iteration that will be sent


def _tensorboard(start: Start) -> GeneralTracker:
    """Begin event files; of older ones everything from `following` on is forgotten."""
    return TensorBoardTracker("tensorboard", start.folder, purge_step=start.following if start.resumed else None)


def _wandb(start: Start) -> GeneralTracker:
    mode = {"mode": "offline"} if start.settings.offline else {}  # otherwise WANDB_MODE, or online
    return WandBTracker(
        start.settings.project, name=start.name, id=start.id, resume="allow", tags=start.settings.tags, dir=str(start.folder),
        settings={"console": "off"}, **mode,
    )  # fmt: skip


def _mlflow(start: Start) -> GeneralTracker:
    place = None
    if start.settings.offline:  # otherwise MLFLOW_TRACKING_URI, or MLflow's own default
        import mlflow

        place = start.folder / "mlflow"
        place.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{place.absolute()}/mlflow.db")
    return MLflowTracker(
        start.settings.project, logging_dir=place and (place.absolute() / "artifacts").as_uri(),
        run_id=start.id if start.resumed else None, run_name=start.name, tags=dict.fromkeys(start.settings.tags, "true"),
    )  # fmt: skip


def _swanlab(start: Start) -> GeneralTracker:
    mode = {"mode": "offline"} if start.settings.offline else {}  # otherwise SWANLAB_MODE, or online
    return SwanLabTracker(
        start.settings.project, name=start.name, id=start.id, resume="allow", tags=start.settings.tags,
        log_dir=str(start.folder / "swanlab"), **mode,
    )  # fmt: skip


def _trackio(start: Start) -> GeneralTracker:
    elsewhere = [name for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if os.environ.get(name)]
    if start.settings.offline and elsewhere:  # without them it writes into its own directory, where its dashboard looks
        raise UserError(f"{elsewhere[0]} is set and trackers.offline=true: leave out one of them")
    return TrackioTracker(
        start.settings.project, name=start.name, resume="allow" if start.resumed else "never", embed=False,
        config=dict(start.config),
    )  # fmt: skip


KINDS: dict[str, Callable[[Start], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "trackio": _trackio,
}
REWINDS = ("tensorboard",)  # trackers that forget what a resumed run trains again; the others keep their first figures


def begin(kind: str, start: Start) -> tuple[GeneralTracker, str]:
    """Begin or resume a run of a tracker; return it with the id by which it is resumed."""
    tracker = KINDS[kind](start)
    tracker.start()
    if not start.resumed and kind != "trackio":  # which gets them as it begins
        tracker.store_init_configuration(dict(start.config))
    return tracker, tracker.tracker.info.run_id if kind == "mlflow" else start.id


@dataclass(frozen=True)
class Shown:
    """Hold pictures of a prompt, and a caption for each."""

    text: str
    pictures: Tensor  # bytes [S, 3, H, W], or of videos [S, T, 3, H, W]
    captions: Sequence[str]

    def images(self) -> list[Any]:
        """Return the pictures as PIL's; of a video three frames side by side."""
        pictures = strips(self.pictures[None])[0] if self.pictures.ndim == 5 else self.pictures
        return [to_pil(picture / 255) for picture in pictures]


def show(tracker: GeneralTracker, key: str, step: int, shown: Shown) -> None:
    """Send pictures."""
    images, captions = shown.images(), [f"{shown.text} – {caption}" for caption in shown.captions]
    if tracker.name == "tensorboard":
        import numpy as np

        tracker.tracker.add_images(key, np.stack([np.asarray(image) for image in images]), step, dataformats="NHWC")
        tracker.tracker.add_text(key, "  \n".join([shown.text, *shown.captions]), step)
    elif tracker.name == "mlflow":
        import mlflow

        for n, image in enumerate(images):
            mlflow.log_image(image, key=f"{key}/{n}", step=step)
        mlflow.log_dict({"prompt": shown.text, "captions": list(shown.captions)}, f"{key}/{step:06d}.json")
    else:
        library = __import__(tracker.name)
        sent = [library.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
        tracker.log({f"{key}/{n}": one for n, one in enumerate(sent)} if tracker.name == "trackio" else {key: sent}, step)
