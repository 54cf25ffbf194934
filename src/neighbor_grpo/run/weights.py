"""A model with its trained weights: a run's last or best ones, or any LoRA; and the LoRAs that a run starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neighbor_grpo.config import Config, check_family
from neighbor_grpo.console import working
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.models.adapter_files import copy_adapter
from neighbor_grpo.models.devices import pick_device, pick_dtype
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.lora import load_all, load_lora
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import family_of, load_model
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.run.files import read_config, trained_weights

FILES = ("revision", "variant", "transformer")  # settings that say which files a model is read from
ADAPTERS = "adapters"  # directory, and its kind


@dataclass(frozen=True)
class Loaded:
    """Hold a model and what it was made of, to be stored with its pictures."""

    model: Family
    settings: dict[str, Any]


def load_base(config: Config, device: torch.device) -> Family:
    """Load the model that a run starts from."""
    m = config.model
    if config.families:
        check_family(config.families, m.path, family_of(m.path, m.revision)[1].pipeline)
    with working(f"loading {m.path}"):
        return load_model(m.path, device, pick_dtype(m.dtype, device), **m.model_settings())


def load_trained(
    path: str | None,
    run: Path | None,
    device: str,
    best: bool = False,
    lora: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a model with the last or best weights of a run, or with a LoRA.

    path: the model, None = the run's or the bundled one.  settings: of the model; None values = the run's, or the defaults.
    """
    if best and not run:
        raise UserError("--best needs a run: add --run RUN")
    if lora and run:
        raise UserError("--lora and --run both give trained weights: give only one of them")
    where = pick_device(device)
    config = read_config(run) if run else None
    known = own_adapters(config, run).model.model_settings() if config and run else {}
    if config and path not in (None, config.model.path):  # these are of the run's own model
        known |= dict.fromkeys(FILES)
    path = path or (config.model.path if config else "scenes")
    known |= {key: value for key, value in (settings or {}).items() if value is not None}
    chosen = ModelSettings(**known | ({"base_loras": [lora]} if lora else {}))
    dtype = pick_dtype("auto", where)
    with working(f"loading {path}"):
        meta_model(path, dtype, **chosen.model_dump())  # what is wrong with the settings is said before weights are read
        model = load_model(path, where, dtype, **chosen.model_dump())
    if run and config:
        _load_run(model, run, config, best)
    return Loaded(
        model,
        {
            "model": path,
            "run": str(run) if run else None,
            "best": best,
            "lora": lora,
            "guidance_scale": model.guidance_scale,
            "cfg": model.cfg,
            "height": model.height,
            "width": model.width,
            **({"num_frames": model.frames} if model.frames else {}),
            **chosen.model_dump(include={*FILES, "shift"}, exclude_defaults=True),
            "dtype": str(model.dtype),
            "device": str(where),
            "release": version("neighbor-grpo"),
        },
    )


def _load_run(model: Family, run: Path, config: Config, best: bool) -> None:
    """Load the trained weights of a run into the model."""
    weights = trained_weights(run, best)
    if config.model.lora:
        load_lora(model.transformer, weights)
    else:
        load_all(model.transformer, weights)


# ---------------------------------------------------------------- what a run starts from


def keep_adapters(run: Path, config: Config) -> None:
    """Copy the LoRAs that a run starts from into it, so that it needs their files only once."""
    if (run / ADAPTERS).is_dir() or not (sources := _sources(config)):
        return
    with atomic.directory(run / ADAPTERS, ADAPTERS) as aside:
        for name, source in sources.items():
            copy_adapter(source, aside / name)


def own_adapters(config: Config, run: Path) -> Config:
    """Return the configuration of a run with the run's own copies of the LoRAs that it starts from.  Raises UserError."""
    sources, own = _sources(config), run / ADAPTERS
    if not sources:
        return config
    atomic.check(own, ADAPTERS)
    m = config.model
    lora = m.lora.model_copy(update={"path": str(own / "start")}) if m.lora and m.lora.path else m.lora
    bases = [base.model_copy(update={"path": str(own / f"base_{n}")}) for n, base in enumerate(m.base_loras)]
    return config.model_copy(update={"model": m.model_copy(update={"lora": lora, "base_loras": bases})})


def _sources(config: Config) -> dict[str, str]:
    """Return where the LoRAs come from that a run starts from, by the names of their copies."""
    m = config.model
    start = {"start": m.lora.path} if m.lora and m.lora.path else {}
    return start | {f"base_{n}": base.path for n, base in enumerate(m.base_loras)}
