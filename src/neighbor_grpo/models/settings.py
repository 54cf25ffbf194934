"""How a model is loaded and draws: the settings that a run, a command and `load_model` share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Settings that find a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Drawing(Section):
    height: Positive | None = Field(None, description="pixels; null = the family's own")
    width: Positive | None = Field(None, description="pixels; null = the family's own")
    num_frames: Positive | None = Field(None, description="of a video; null = the family's own")
    guidance_scale: float | None = Field(
        None, description="for models with a guidance embedding, no second forward; null = the pipeline's own"
    )
    cfg: float = Field(1.0, ge=1, description="classifier-free guidance, a second forward each; 1 = none")
    max_sequence_length: Positive | None = Field(None, description="text tokens; null = what the pipeline takes")
    quantize: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="of the frozen transformer under a LoRA: nf4 by bitsandbytes, int8 and fp8 by torchao"
    )
    attention: str | None = Field(None, description="diffusers' attention backend, e.g. flash, sage, _flash_3; null = torch's")
    vae_tiling: bool = Field(False, description="decode in tiles: for memory only, the reward sees their seams")

    def drawing(self) -> dict[str, Any]:
        """These settings alone, of a section that adds others to them."""
        return self.model_dump(include=set(Drawing.model_fields))
