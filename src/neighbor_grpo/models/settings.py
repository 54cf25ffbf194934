"""How a model is loaded and draws: the settings that a run, a command and `load_model` share."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from neighbor_grpo.errors import UserError

Positive = Annotated[int, Field(ge=1)]
DEVICES = ("auto", "cuda", "mps", "cpu")


def known_device(name: str) -> str:
    """Return `name` unless it is not one of DEVICES.  Raises UserError."""
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}: choose auto, cuda, mps or cpu")
    return name


Device = Annotated[str, AfterValidator(known_device)]


class Section(BaseModel):
    """Settings that find a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Drawing(Section):
    """Describe how a model draws: size, guidance, precision of its frozen weights."""

    height: Positive | None = Field(None, description="height in pixels; null = the model's default")
    width: Positive | None = Field(None, description="width in pixels; null = the model's default")
    num_frames: Positive | None = Field(None, description="frames of a video; null = the model's default")
    guidance_scale: float | None = Field(
        None, description="guidance embedding, for models that have one; null = the pipeline's default"
    )
    cfg: float = Field(1.0, ge=1, description="classifier-free guidance, which doubles every forward; 1 = without")
    max_sequence_length: Positive | None = Field(None, description="text tokens; null = the pipeline's default")
    quantize: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="quantize the frozen transformer under a LoRA: nf4 by bitsandbytes, int8 and fp8 by torchao"
    )
    attention: str | None = Field(None, description="diffusers' attention backend, e.g. flash, sage, _flash_3; null = torch's")
    vae_tiling: bool = Field(False, description="decode in tiles to save memory; the rewards see their seams")

    def drawing(self) -> dict[str, Any]:
        """Return these settings without those that a subclass adds."""
        return self.model_dump(include=set(Drawing.model_fields))
