"""Everything a run can be told, typed and checked: pydantic models over YAML, with dotted overrides."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.models.settings import Lora, ModelSettings, Positive, Section

AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007
DEMO = Path(__file__).parent / "presets" / "demo.yaml"


class Model(ModelSettings):
    path: str = Field("scenes", description="diffusers pipeline directory, hub id, or the bundled 'scenes'")
    lora: Lora | None = Field(Lora(), description="null = full fine-tuning")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, float32 on a CPU")
    gradient_checkpointing: bool = Field(False, description="a third more compute for far less memory")
    compile: bool = Field(False, description="torch.compile of the transformer's repeated block; the first calls take minutes")
    fp8_rollout: bool = Field(False, description="rollout products in 8 bits; ratio/noise_floor shows what it costs")

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.quantize and not self.lora:
            raise ValueError(f"model.quantize={self.quantize} freezes the weights, so it needs model.lora")
        if self.quantize and self.fp8_rollout:
            raise ValueError("model.fp8_rollout is for weights that are not quantized: leave out model.quantize")
        return self


class Prompts(Section):
    path: str = Field("scenes", description=".txt (a prompt a line) or .jsonl (with metadata), or 'scenes'")
    eval_path: str | None = Field(None, description="held-out prompts, the same formats; null = the first of path's own")
    per_iteration: Positive = Field(8, description="P, prompts per iteration over all ranks")
    cache_dir: str = Field("~/.cache/neighbor-grpo/text", description="where text embeddings are kept")
    cache_gb: float = Field(10.0, gt=0, description="disk budget of the text embeddings")


class Rewards(Section):
    """What is trained on, what is only watched, and what scores them.

    Short forms: reward: NAME or {NAME: weight} for reward.train, and watch: [...] beside it for reward.watch.
    """

    train: dict[str, float] = Field({"scenes": 1.0}, min_length=1, description="{name or file.py:function: weight}")
    watch: list[str] | None = Field(
        None, description="rewards and metrics evaluated, never trained on; null = diversity, artefacts ... and the scenes' own"
    )
    aggregate: Literal["advantages", "rewards"] = Field(
        "advantages", description="what is summed with the weights of several rewards: z-scores, or raw values"
    )
    scorers: dict[str, dict[str, Any]] = Field(
        {}, description="settings of scorers by name: {hpsv2.1: {weights: PATH}, mine: {url: http://127.0.0.1:8000}}"
    )
    overlap: bool = Field(False, description="score in a thread while the next groups (batch.rollout rows) roll out")
    max_failed: float = Field(0.1, ge=0, le=1, description="share of pictures without a score beyond which the run stops")

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return spelled_out(value)


def spelled_out(value: Any) -> Any:
    """The reward section of its short forms: a name, or {name: weight}."""
    if isinstance(value, str) or (isinstance(value, dict) and value and not value.keys() & Rewards.model_fields.keys()):
        value = {"train": value}
    if isinstance(value, dict) and isinstance(value.get("train"), str):
        value = value | {"train": {value["train"]: 1.0}}
    return value


class Optimizer(Section):
    name: Literal["adamw", "adamw_8bit"] = Field("adamw", description="adamw_8bit: states in 8 bits, by bitsandbytes")
    lr: float = Field(1e-4, gt=0, description="AdamW's rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    warmup: int = Field(0, ge=0, description="optimizer steps of linear warm-up")


class Ema(Section):
    decay: float = Field(0.95, ge=0, lt=1, description="of the averaged weights that are evaluated and exported")


class Evaluation(Section):
    every: int = Field(0, ge=0, description="iterations between evaluations; 0 = before and after only")
    prompts: Positive = Field(64, description="how many of eval_path's prompts, from the first on")
    seeds: Positive = Field(2, description="pictures of each prompt")
    num_steps: Positive | None = Field(None, description="null = the method's")
    solver: Literal["euler", "heun", "dpmpp_2m", "dpmpp_3m"] = Field("dpmpp_2m", description="of the sampling")
    gallery: Positive = Field(8, description="prompts shown before and after")
    best: str | None = Field(
        None,
        description="watched measure whose best checkpoint is kept in best/, -name where less is better; "
        "null = the first watched reward",
    )
    early_stop: float | None = Field(
        None,
        gt=0,
        description="stop when the trained reward has risen by so many stds (over pictures, before training) "
        "more than a watched reward; null = never",
    )


class Batch(Section):
    """Rows that one device takes at once: speed and memory, never the result."""

    rollout: Positive = Field(96, description="rows of a rollout forward")
    update: Positive = Field(64, description="rows of a forward-backward")
    decode: Positive = Field(16, description="latents decoded at once")
    keep_on: Literal["device", "cpu"] = Field("device", description="where a rollout's states wait for the update")


class Config(Section):
    """A whole run; the defaults are the published recipe, with a LoRA, on the bundled model and task."""

    run_dir: str | None = Field(None, description="where everything is written; null = the first free runs/NNN")
    seed: int = Field(0, ge=0, description="everything random follows from it")
    iterations: Positive = Field(100, description="rollouts")
    device: str = Field("auto", description="auto, cuda, mps or cpu")
    model: Model = Model()
    prompts: Prompts = Prompts()
    method: AnyMethod = Field(Neighbor(), description="hyper-parameters of the method")
    reward: Rewards = Rewards()
    optimizer: Optimizer = Optimizer()
    ema: Ema | None = Field(Ema(), description="null = none")
    evaluate: Evaluation = Evaluation()
    batch: Batch = Batch()
    seconds: float | None = Field(None, gt=0, description="of training after which the run ends; null = after the iterations")
    save_every: Positive = Field(20, description="iterations between checkpoints; the last two are kept")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.method.needs_reference and not self.model.lora:
            raise ValueError("method.kl needs model.lora: the reference is the model without its LoRA")
        return self

    @property
    def watched(self) -> list[str]:
        """Rewards and metrics that are evaluated but not trained on."""
        if self.reward.watch is not None:
            return [name for name in self.reward.watch if name not in self.reward.train]
        scenes = ["scenes_strict", "scenes_distance"] if self.model.path == self.prompts.path == "scenes" else []
        several = ["diversity"] if self.evaluate.seeds > 1 else []
        names = [*scenes, *several, "jpeg_size", "grid_artefacts", "saturation", "sharpness"]
        return [name for name in names if name not in self.reward.train]


def load_config(path: str | Path | Sequence[str | Path] | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The defaults, changed by a YAML file or several (without one: demo.yaml), then by overrides ("method.sigma=0.2")."""
    values: dict[str, Any] = {}
    for file in [path] if isinstance(path, str | Path) else path or [DEMO]:
        values = merge(values, read_values(file))
    return configured(override(values, overrides))


def read_values(path: str | Path) -> dict[str, Any]:
    """Nested keys of a YAML file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {str(path)!r}: give a .yaml file, or none for the bundled default")
    values = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, not a {type(values).__name__}")
    return values


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested keys of `changes` over those of `values`; settings of another method, and what was trained on, do not stay."""
    return _merged(_long_forms(values), _long_forms(changes))


def _long_forms(values: dict[str, Any]) -> dict[str, Any]:
    """Without the short forms of the reward section."""
    values = dict(values)
    if "reward" in values:
        values["reward"] = spelled_out(values["reward"])
    if "watch" in values:
        section = values.get("reward", {})
        values["reward"] = {**(section if isinstance(section, dict) else {}), "watch": values.pop("watch")}
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        old = values.get(key)
        other_method = key == "method" and "name" in (value or {}) and value["name"] != (old or {}).get("name", "neighbor")
        inside = isinstance(old, dict) and isinstance(value, dict) and not other_method and key != "train"
        merged[key] = _merged(old, value) if inside else value
    return merged


def override(values: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Nested keys changed by "key.of.it=value", one after another."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no override: write key=value, for instance method.sigma=0.3")
        change = _yaml(value, text)
        for part in reversed(key.strip().split(".")):
            change = {part: change}
        values = merge(values, change)
    return values


def configured(values: dict[str, Any]) -> Config:
    """The configuration of nested keys; a method without a name is neighbor."""
    if isinstance(method := values.get("method"), dict):
        values = values | {"method": {"name": "neighbor"} | method}
    try:
        return Config(**values)
    except ValidationError as error:
        raise UserError(one_line(error)) from error


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def one_line(error: ValidationError, section: type = Config) -> str:
    """The first mistake of a configuration, and the nearest key if it is an unknown one."""
    first, *others = error.errors()
    place = [str(part) for part in first["loc"]]
    of_method = place[:1] == ["method"]
    method = place.pop(1) if of_method and len(place) > 1 else "neighbor"  # pydantic's tag of the union
    location, more = ".".join(place), f" (and {len(others)} more)" if others else ""
    if first["type"] == "union_tag_invalid":
        name = first["ctx"]["tag"]
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        return f"no method {name!r}: {hint}{more}"
    if first["type"] == "missing":
        return f"{location} is required and not given{more}"
    keys = [key for key, *_ in describe(section, method=METHODS[method])]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        sections = {key.rsplit(".", depth)[0] for key in keys for depth in (1, 2) if "." in key}
        near = difflib.get_close_matches(location, [*keys, *sections], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see neighbor-grpo train --help for the keys"
        return f"unknown key {location}{f' of {method}' if of_method and method != 'neighbor' else ''}: {hint}{more}"
    known = max((key for key in keys if location == key or location.startswith(key + ".")), key=len, default=location)
    message = first["msg"].removeprefix("Value error, ")
    return f"{known}: {message[0].lower() + message[1:]}, not {first['input']!r}{more}" if known in keys else message + more


def describe(section: type = Config, prefix: str = "", method: type = Neighbor) -> Iterator[tuple[str, str, Any, str]]:
    """Every key as (dotted key, type, default, description); the method's keys are those of one method."""
    fields = getattr(section, "model_fields", None) or section.__pydantic_fields__
    for name, info in fields.items():
        inner = [kind for kind in (info.annotation, *get_args(info.annotation)) if hasattr(kind, "__pydantic_fields__")]
        if inner:
            yield from describe(method if method in inner else inner[0], f"{prefix}{name}.", method)
        else:
            yield prefix + name, _type(info.annotation), info.default, info.description or ""


def _type(kind: Any) -> str:
    """A type as a reader would write it: int | null, one of a, b."""
    if get_origin(kind) is Literal:
        return " | ".join(json.dumps(choice) for choice in get_args(kind))
    if get_origin(kind) is Annotated:
        return _type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(_type(part) for part in get_args(kind))
    return "null" if kind is type(None) else kind.__name__ if not get_args(kind) else str(kind).replace("typing.", "")
