"""The settings that load a model, shared by runs, commands and `load_model`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.text import expand_home

Positive = Annotated[int, Field(ge=1, le=10**6)]  # also makes lists and tensors of so many
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Place = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(expand_home)]  # a path; ~ is the home directory
Frames = Annotated[int, Field(ge=1, le=10**4)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
DEVICES = ("auto", "cuda", "mps", "cpu")


def known_device(name: str) -> str:
    """Return `name` unless it is not one of DEVICES.  Raises UserError."""
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}: choose auto, cuda, mps or cpu")
    return name


Device = Annotated[str, AfterValidator(known_device)]


class Section(BaseModel):
    """Hold settings of which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Lora(Section):
    """Describe the LoRA that is trained."""

    path: Place | None = Field(
        None, description="a LoRA to train on: file, folder or hub id, in any layout; null = a new one that changes nothing"
    )
    rank: Annotated[int, Field(ge=1, le=2**14)] | None = Field(
        16, description="rank of the update of each layer; null = that of model.lora.path"
    )
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        16.0, description="the update is scaled by alpha / rank; null = that of model.lora.path"
    )
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="endings of the names of the layers to adapt; null = those of model.lora.path, or the attention "
        "projections of the model",
    )
    reference: Literal["start", "base"] = Field(
        "start", description="what a method's reference has: the LoRA of model.lora.path as it was, or none"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_file(cls, value: Any) -> Any:
        return {"rank": None, "alpha": None} | value if isinstance(value, dict) and value.get("path") else value

    @model_validator(mode="after")
    def _check(self) -> "Lora":
        for key in ("rank", "alpha"):
            if getattr(self, key) is None and not self.path:
                raise ValueError(f"model.lora.{key} is null: give a number, or the LoRA that it is taken from, model.lora.path")
        return self


class BaseLora(Section):
    """Describe a LoRA that belongs to the base: it is frozen, and the reference has it too."""

    path: Place = Field(description="file, folder or hub id, in any layout")
    strength: float = Field(1.0, description="multiplies its update")

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "BaseLora":
        if self.strength == 0:
            raise ValueError("model.base_loras: a strength of 0 changes nothing: leave the LoRA out")
        return self


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _shift(value: Any) -> Any:
    """Return a shift of the times unless it is none: one mistake, not one for each of the types."""
    if value != "auto" and not (isinstance(value, int | float) and 0 < value <= 1000):
        raise ValueError("give auto, or a number above 0 and at most 1000")
    return value


class ModelSettings(Section):
    """Describe how a model is loaded: its files, size of its pictures, guidance, times, text length, memory and speed."""

    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="branch, tag or commit of a model of the hub; null = its main branch"
    )
    variant: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="files of weights to load, for instance fp16 for *.fp16.safetensors; null = those without a variant"
    )
    transformer: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None,
        description="another transformer: a directory, a hub id with or without a folder or file in it, a .safetensors "
        "or a .gguf file; null = the pipeline's",
    )
    height: Pixels | None = Field(None, description="height in pixels; null = the model's default")
    width: Pixels | None = Field(None, description="width in pixels; null = the model's default")
    num_frames: Frames | None = Field(None, description="frames of a video; null = the model's default")
    guidance_scale: float | None = Field(
        None, description="input of a guidance-distilled model, no second forward; null = the default of its pipeline"
    )
    cfg: float = Field(1.0, ge=1, description="classifier-free guidance, a second forward each time; 1 = off")
    shift: Annotated[Literal["auto"] | float, BeforeValidator(_shift)] = Field(
        "auto",
        description="m of the times t <- m·t/(1 + (m - 1)·t): a number for every size, or auto = the pipeline's own rule",
    )
    max_sequence_length: Annotated[int, Field(ge=1, le=10**5)] | None = Field(
        None, description="text tokens; null = the default of the pipeline"
    )
    quantize: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="weights of the frozen transformer under a LoRA: nf4 by bitsandbytes, int8 and fp8 by torchao"
    )
    attention: str | None = Field(
        None, description="attention backend of diffusers, for instance flash, sage, _flash_3; null = torch's own"
    )
    base_loras: Annotated[list[BaseLora], BeforeValidator(_listed)] = Field(
        [], max_length=16, description="frozen LoRAs on the base: PATH, or a list of PATH and {path: PATH, strength: 0.8}"
    )
    vae_tiling: bool = Field(False, description="decode in tiles to save memory; the reward sees their seams")

    def model_settings(self) -> dict[str, Any]:
        """Return these settings only, without those that a subclass adds."""
        return self.model_dump(include=set(ModelSettings.model_fields))
