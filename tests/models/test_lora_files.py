"""LoRA files of any bytes: all of a LoRA is used, or it is refused in one line."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import PIECES, bytes_of, is_one_line, quick
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.lora import load_lora, save_lora
from neighbor_grpo.models.registry import load_model

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def model(tiny_flux):
    return load_model(tiny_flux)


@pytest.fixture(scope="module")
def lora(tiny_flux, tmp_path_factory):
    """Directory of a LoRA that changes something."""
    place = tmp_path_factory.mktemp("lora")
    trained = load_model(tiny_flux)
    add_lora(trained.transformer, 2, 4, ["to_q", "to_k"])
    for name, weight in trained.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_lora(trained.pipe, trained.transformer, place)
    return place


def attempt(model, source) -> str:
    """Load a LoRA and remove it: return the mistake, "" if it was loaded."""
    try:
        load_lora(model.transformer, source)
    except UserError as mistake:
        assert is_one_line(mistake), mistake
        return str(mistake)
    finally:
        if any(isinstance(part, LoraLayer) for part in model.transformer.modules()):
            model.pipe.unload_lora_weights()
    return ""


def test_a_whole_one_is_loaded(model, lora, tmp_path):
    assert attempt(model, lora) == attempt(model, lora / FILE) == ""
    torch.save(load_file(lora / FILE), tmp_path / "lora.bin")
    assert attempt(model, tmp_path) == ""
    torch.save({"weights": load_file(lora / FILE)}, tmp_path / "lora.bin")
    assert "tensors by name" in attempt(model, tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    assert attempt(model, tmp_path)


def renamed(old: str, new: str):
    return lambda weights: {name.replace(old, new): weight for name, weight in weights.items()}


def added(end: str, tensor):
    """Add a tensor to one of the layers."""
    return lambda weights: weights | {min(weights).removesuffix(".lora_A.weight") + end: tensor}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed("transformer.", "unet."), "12 of 12 keys"),
        (renamed("transformer_blocks.0", "transformer_blocks.7"), "no layer uses"),
        (renamed("to_q", "to_other"), "no layer uses"),
        (
            lambda weights: (
                weights | {name.replace("blocks.0", "blocks.9"): weight.clone() for name, weight in weights.items()}
            ),
            "no layer uses",
        ),
        (lambda weights: {name: weight[..., :1].contiguous() for name, weight in weights.items()}, "matrices"),
        (lambda weights: {name: weight for name, weight in weights.items() if "lora_B" not in name}, "6 of 6 keys"),
        (lambda weights: weights | {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, "text encoders"),
        (lambda weights: weights | {"something": torch.ones(2, 2)}, "something"),
        (added(".alpha", torch.tensor(0.0)), "alpha"),
        (added(".alpha", torch.tensor(torch.nan)), "not finite"),
        (added(".alpha", torch.ones(2)), "alpha"),
        (added(".lora_A.default.weight", torch.ones(2, 48)), "two"),
        (added(".dora_scale", torch.ones(48, 1)), "DoRA"),
        (added(".lora_magnitude_vector", torch.ones(48)), "DoRA"),
        (added(".lokr_w1", torch.ones(2, 2)), "LoKr"),
        (added(".hada_w1_a", torch.ones(2, 2)), "LoHa"),
        (added(".lora_mid.weight", torch.ones(2, 2)), "third matrix"),
        (added(".diff", torch.ones(48, 48)), "diff"),
        (added(".diff_b", torch.ones(48)), "diff"),
        (added(".lora_B.bias", torch.ones(48)), "biases"),
        (lambda weights: {name: weight.to(torch.int32) for name, weight in weights.items()}, "int32"),
        (lambda weights: {name: weight * torch.nan for name, weight in weights.items()}, "not finite"),
        (lambda weights: {"weight": torch.zeros(2)}, ""),
        (lambda weights: {}, ""),
    ],
)
def test_what_does_not_fit_is_refused_and_not_left_out(model, lora, tmp_path, change, said):
    save_file(change(load_file(lora / FILE)), tmp_path / FILE)
    mistake = attempt(model, tmp_path)
    assert mistake and said in mistake


def test_what_is_not_a_lora_is_refused(model, lora, tmp_path):
    whole = (lora / FILE).read_bytes()
    for data in (
        b"",
        whole[:-1],
        whole[:100],
        whole + b"0",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02}q\x00.",
    ):
        (tmp_path / FILE).write_bytes(data)
        assert attempt(model, tmp_path) and attempt(model, tmp_path / FILE)
    (tmp_path / FILE).unlink()
    for source in (tmp_path, tmp_path / "missing", "x" * 5000, "a\0b", "somebody/missing"):
        assert attempt(model, source)


@quick(60)
@given(data=st.data())
def mutated(model, file, original, data):
    """Load a file of which a few bytes are others, most of them in the header."""
    head = 8 + int.from_bytes(original[:8], "little")
    start = data.draw(
        bytes_of([original[:head]], [*PIECES, b"F16", b"BF16", b"I64", b"lora_A", b"9", b"transformer.", b"alpha"])
    )
    if data.draw(st.booleans()):  # of the length that it says
        start = (len(start) - 8).to_bytes(8, "little") + start[8:] if len(start) > 8 else start
    file.write_bytes(start + original[head:])
    attempt(model, file)


def test_mutated_files_are_refused_in_one_line(model, lora, tmp_path):
    mutated(model, tmp_path / FILE, (lora / FILE).read_bytes())


@pytest.mark.slow
def test_many_mutated_files(model, lora, tmp_path):
    quick(400)(mutated)(model, tmp_path / FILE, (lora / FILE).read_bytes())
