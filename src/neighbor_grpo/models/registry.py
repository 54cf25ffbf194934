"""Flow models behind one small protocol, an adapter for each diffusers pipeline family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import Time
from neighbor_grpo.models.family import Cond, Family
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.models.flux2 import Flux2
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.quantization import choose_attention, quantization
from neighbor_grpo.models.qwen_image import QwenImage
from neighbor_grpo.models.sd3 import SD3
from neighbor_grpo.models.settings import Drawing, known_device
from neighbor_grpo.models.wan import Wan, WanImage
from neighbor_grpo.models.z_image import ZImage

BUNDLED = Path(__file__).parent.parent / "scenes" / "model"
MODELS = {  # name of the diffusers pipeline class -> adapter
    "FluxPipeline": Flux,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2,
    "ZImagePipeline": ZImage,
    "StableDiffusion3Pipeline": SD3,
    "QwenImagePipeline": QwenImage,
    "HunyuanVideoPipeline": HunyuanVideo,
    "WanPipeline": Wan,
    "WanImageToVideoPipeline": WanImage,
}


class FlowModel(Protocol):
    """n prompts, R rows.  Everything comes from the pipeline's own configuration; there are no loops and no solver."""

    transformer: nn.Module  # what is trained
    fingerprint: str  # changes when the text encoders do
    lora_targets: Sequence[str]  # endings of the names of the layers that a LoRA adapts when nothing else is said
    Cond: type[Cond]

    def encode(self, prompts: Sequence[str], images: Sequence[Path] = ()) -> Cond:
        """Conditioning of each prompt, and of the picture it starts from where the model takes one: [n, ...], on the CPU."""

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal [n, *latent], drawn on the CPU so that a seed means the same picture on every device."""

    def times(self, num_steps: int) -> list[float]:
        """The grid 1 = t_0 > ... > t_N = 0 of the model's own scheduler."""

    def velocity(self, x: Tensor, t: Time, cond: Cond) -> Tensor:
        """v(x, t) for rows x [R, *latent], t a float or [R], conditioning [R, ...]; fp32."""

    def decode(self, x: Tensor, rows: int = 16) -> Tensor:
        """Pictures [R, 3, H, W] or videos [R, T, 3, H, W] in [0, 1], fp32, on the CPU; `rows` at once."""


def load_model(
    path_or_id: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **drawing
) -> FlowModel:
    """A diffusers pipeline directory, a hub id, or "scenes", the bundled model; `drawing`: keys of drawing.Drawing.

    Raises UserError, with the remedy, when there is no pipeline or none that an adapter knows.
    """
    adapter, index = adapter_of(path_or_id)
    drawing = Drawing(**drawing)
    dropped = {name: None for name, kind in index.items() if kind == [None, None]}  # saved without, e.g. SD3's T5
    quantized = {"quantization_config": quantization(drawing.quantize, dtype)} if drawing.quantize else {}
    try:
        pipe = DiffusionPipeline.from_pretrained(located(path_or_id), dtype=dtype, use_safetensors=True, **quantized, **dropped)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the pipeline at {str(path_or_id)!r} does not load: {reason}") from error
    model = adapter(pipe, torch.device(device), dtype, drawing)
    if drawing.attention:
        choose_attention(model.transformer, drawing.attention)
    return model


def located(path_or_id: str | Path) -> str | Path:
    """The same, but of the bundled model its directory."""
    return BUNDLED if str(path_or_id) == "scenes" else path_or_id


def adapter_of(path_or_id: str | Path) -> tuple[type[Family], dict]:
    """The adapter of a pipeline and its index of components, of which nothing is loaded."""
    try:
        index = DiffusionPipeline.load_config(located(path_or_id))
        family = index["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no diffusers pipeline at {str(path_or_id)!r}: give a directory with a model_index.json, a hub id, or 'scenes'"
        ) from error
    if family not in MODELS:
        raise UserError(
            f"{str(path_or_id)!r} is a {family}, which has no adapter; there are {', '.join(MODELS)} "
            "(a new one is a file like neighbor_grpo/models/flux.py)"
        )
    return MODELS[family], index


def pick_device(name: str) -> torch.device:
    """A device by name; auto is cuda, else mps, else cpu."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in here.items() if available))
    if not here[known_device(name)]:
        raise UserError(f"device {name!r} is not available here: set device=auto or device=cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name; auto is bfloat16 on a CUDA device, else float32."""
    name = {"auto": "bfloat16" if device.type == "cuda" else "float32"}.get(name, name)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def move(cond: Cond, device: torch.device) -> Cond:
    """Conditioning on a device, so that a rollout's steps do not each carry it there; counts and masks stay on the CPU."""
    return type(cond)(*(tensor.to(device) if tensor.is_floating_point() else tensor for tensor in cond))


def take(cond: Cond, rows: Tensor) -> Cond:
    """Conditioning of the rows given by index, on the CPU."""
    return type(cond)(*(tensor[rows.to(tensor.device)] for tensor in cond))
