"""Conversion of published checkpoints of scorers into directories that transformers reads.

Every weight of the target model is looked up under its published name, and every name of the file must be used: a file of
another model, or of another version, is an error that names the key.  Sizes are read from the shapes, except the numbers of
attention heads, which do not show in them.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from neighbor_grpo.console import one_line, reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.rewards.learned.clip import Head
from neighbor_grpo.rewards.learned.files import CONVERTED, KIND, read_tokenizer
from neighbor_grpo.rewards.learned.imagereward import MARKS, Blip

State = dict[str, Tensor]
Published = Callable[[str], tuple[str, Callable[[Tensor], Tensor]]]  # our name -> published name, conversion of the tensor
_HEADS = {1280: 16}  # by width: ViT-H; the other towers have heads of width 64
_HPS = (  # transformers' name -> open_clip's
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_projection.weight", "text_projection"),
    ("visual_projection.weight", "visual.proj"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("layer_norm", "ln_"),
    (".fc1", ".c_fc"),
    (".fc2", ".c_proj"),
    ("self_attn", "attn"),
    ("q_proj.", "in_proj_"),
    ("k_proj.", "in_proj_"),
    ("v_proj.", "in_proj_"),
)
_BLIP = (  # transformers' name -> that of BLIP's authors
    ("vision_model.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "blip.visual_encoder.norm"),
    ("vision_model.encoder.layers", "blip.visual_encoder.blocks"),
    ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("text_model", "blip.text_encoder"),
)
# buffers, and BLIP's projections for its contrastive loss
_UNUSED = re.compile(r"attn_mask|.*\.position_ids|blip\.(vision|text)_proj\.(weight|bias)")
_TOKENIZERS: dict[str, tuple[type[PreTrainedTokenizerBase], str, int]] = {  # class, default source, tokens that it lacks
    "hpsv2.1": (CLIPTokenizer, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 0),
    "imagereward": (BertTokenizer, "google-bert/bert-base-uncased", MARKS),
}


def convert(
    name: str,
    source: Path,
    out: Path | None = None,
    tokenizer: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> Path:
    """Convert the checkpoint `source` of the scorer `name` and return the new directory, which is written atomically.

    out: by default the directory where the scorer looks.  tokenizer: a directory or a hub id.  vision_heads, text_heads: by
    default those of the published model.  Raises UserError if the checkpoint is not one of that scorer.
    """
    if name not in _MODELS:
        raise UserError(f"cannot convert a checkpoint of {name!r}: choose {', '.join(_MODELS)}")
    out = Path(out or f"{CONVERTED}/{name}").expanduser()
    atomic.refuse_used(out)
    state = _read(Path(source).expanduser())
    build, published = _MODELS[name]
    try:
        with torch.device("meta"):  # names and shapes without memory
            model = build(state, vision_heads, text_heads)
    except KeyError as error:
        raise UserError(f"{source} is not a checkpoint of {name}: missing key {error.args[0]}") from error
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:  # sizes are read off shapes of any kind
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{source} is not a checkpoint of {name}: its shapes fit no such model ({reason_of(error, 200)}): give another file"
        ) from error
    weights = _translate(name, source, state, model, published)
    parts: list[PreTrainedConfig | PreTrainedTokenizerBase] = []
    if isinstance(model, PreTrainedModel):
        kind, default, spare = _TOKENIZERS[name]
        vocabulary = model.config.to_dict()["text_config"]["vocab_size"]
        remedy = "give another with --tokenizer PATH"
        parts = [model.config, read_tokenizer(kind, tokenizer or default, vocabulary, spare, remedy)]
    with atomic.directory(out, KIND) as aside:
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        for part in parts:
            part.save_pretrained(aside)
    return out


def _read(source: Path) -> State:
    """Read the tensors of a .safetensors file, or of a pickle that contains only data."""
    if not source.is_file():
        raise UserError(f"no such file {source}: correct the path")
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind may raise anything in its reader
        reason = one_line(str(error))
        if code := re.search(r"GLOBAL (\S+)", reason):
            raise UserError(
                f"{source} is a pickle that would run code ({code[1]}) and was not loaded: give a file of tensors only"
            ) from error
        raise UserError(
            f"{source} cannot be read ({type(error).__name__} {reason[:200]}): give a checkpoint of tensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    other = next((f" ({key} is not a tensor)" for key, value in state.items() if not isinstance(value, Tensor)), "")
    if not state or other:
        raise UserError(f"{source} does not contain tensors by name{other}: give a checkpoint of tensors")
    if all(key.startswith("module.") for key in state):  # saved from distributed training
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _translate(name: str, source: Path, state: State, model: nn.Module, published: Published) -> State:
    """Return the weights by the model's names.  Raises UserError for a missing or unexpected key, or another shape."""
    names = {key: published(key) for key in model.state_dict()}
    used = {theirs for theirs, _ in names.values()}
    for key in state:
        if key not in used and not _UNUSED.fullmatch(key):
            raise UserError(f"{source} is not a checkpoint of {name}: unexpected key {key}")
    weights = {}
    for key, ours in model.state_dict().items():
        theirs, form = names[key]
        if theirs not in state:
            raise UserError(f"{source} is not a checkpoint of {name}: missing key {theirs}")
        tensor = state[theirs]
        if tensor.ndim and tensor.ndim <= max(ours.ndim, 1):  # `form` is not defined for more dimensions
            tensor = form(tensor)
        if tensor.shape != ours.shape:
            raise UserError(
                f"{source} is not a checkpoint of {name}: {theirs} gives the shape {list(tensor.shape)}, "
                f"expected {list(ours.shape)}"
            )
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise UserError(f"{source} is damaged: {theirs} is not a tensor of finite numbers: download it again")
        weights[key] = tensor.contiguous()
    return weights


def _renamed(table: tuple[tuple[str, str], ...]) -> Published:
    def published(key: str) -> tuple[str, Callable[[Tensor], Tensor]]:
        theirs = key
        for ours, other in table:
            theirs = theirs.replace(ours, other)
        if key.endswith("_projection.weight"):  # open_clip multiplies by these from the right
            return theirs, Tensor.t
        if third := re.search(r"self_attn\.([qkv])_proj\.", key):  # of open_clip's joint matrix
            return theirs, lambda joint: joint.chunk(3)["qkv".index(third[1])]
        return theirs, lambda weight: weight

    return published


def _heads(width: int, given: int | None, flag: str) -> int:
    heads = given or _HEADS.get(width, max(width // 64, 1))
    if width % heads:
        raise UserError(f"{heads} attention heads do not divide a width of {width}: give {flag}")
    return heads


def _depth(state: State, layer: str) -> int:
    return 1 + max((int(match[1]) for key in state if (match := re.match(rf"{re.escape(layer)}\.(\d+)\.", key))), default=-1)


def _vision(state: State, patches: str, positions: str, layers: str, inner: str, heads: int | None) -> dict[str, Any]:
    """Read the sizes of a vision transformer, by the names of its patch and position embeddings, layers and inner matrix."""
    width, patch = state[patches].shape[0], state[patches].shape[-1]
    return {
        "hidden_size": width,
        "patch_size": patch,
        "num_hidden_layers": _depth(state, layers),
        "image_size": patch * round((state[positions].shape[-2] - 1) ** 0.5),  # a square of patches, and the class token
        "intermediate_size": state[f"{layers}.0.{inner}"].shape[0],
        "num_attention_heads": _heads(width, heads, "--vision-heads"),
        "hidden_act": "gelu",
    }


def _clip(state: State, vision_heads: int | None, text_heads: int | None) -> CLIPModel:
    vocabulary, width = state["token_embedding.weight"].shape
    embedding = state["visual.proj"].shape[-1]
    layers, inner = "transformer.resblocks", "mlp.c_fc.weight"
    vision = _vision(state, "visual.conv1.weight", "visual.positional_embedding", f"visual.{layers}", inner, vision_heads)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": _depth(state, layers),
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "intermediate_size": state[f"{layers}.0.{inner}"].shape[0],
        "num_attention_heads": _heads(width, text_heads, "--text-heads"),
        "hidden_act": "gelu",
        # the feature is read at the highest token, which ends the text
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
        "projection_dim": embedding,
    }
    vision["projection_dim"] = embedding
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedding))


def _blip(state: State, vision_heads: int | None, text_heads: int | None) -> Blip:
    visual, textual = "blip.visual_encoder", "blip.text_encoder"
    vision = _vision(
        state,
        f"{visual}.patch_embed.proj.weight",
        f"{visual}.pos_embed",
        f"{visual}.blocks",
        "mlp.fc1.weight",
        vision_heads,
    )
    vocabulary, width = state[f"{textual}.embeddings.word_embeddings.weight"].shape
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": _depth(state, f"{textual}.encoder.layer"),
        "max_position_embeddings": state[f"{textual}.embeddings.position_embeddings.weight"].shape[0],
        "intermediate_size": state[f"{textual}.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_attention_heads": _heads(width, text_heads, "--text-heads"),
        "is_decoder": True,  # gives the layers their cross-attention
    }
    return Blip(BlipConfig(text_config=text, vision_config={**vision, "layer_norm_eps": 1e-6}))


def _head(state: State, vision_heads: int | None, text_heads: int | None) -> Head:
    return Head(state["layers.0.weight"].shape[1])


_MODELS: dict[str, tuple[Callable[[State, int | None, int | None], nn.Module], Published]] = {
    "hpsv2.1": (_clip, _renamed(_HPS)),
    "imagereward": (_blip, _renamed(_BLIP)),
    "aesthetic": (_head, _renamed(())),
}
