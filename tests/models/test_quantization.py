import shutil

import pytest
import torch
from runs import metrics, settings
from safetensors.torch import load_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.backends import choose_attention
from neighbor_grpo.models.quantization import fp8_products, rounded
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.training.trainer import Trainer

PROMPTS = ["a red circle", "two blue stars"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def seen(model, t=0.6):
    return model.velocity(model.noise(2, torch.Generator().manual_seed(0)), t, model.encode(PROMPTS))


def test_rounding_keeps_four_bits_of_every_row():
    """e4m3 has three bits after the leading one: half a step is 2^-4 of the value, for values above its smallest normal one."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 64)[:, None]
    y, scale = rounded(x)
    back = y.float() * scale
    large = x.abs() > 2**-6 * scale
    assert large.float().mean() > 0.99 and ((back - x).abs() <= 2**-4 * x.abs() * 1.0001)[large].all()
    torch.testing.assert_close(back.abs().amax(1), x.abs().amax(1), rtol=1e-6, atol=0)  # the largest is kept


def test_fp8_products_are_those_of_rounded_factors_and_go_away(tiny_flux):
    model = load_model(tiny_flux)
    plain, layer = seen(model), model.transformer.transformer_blocks[0].attn.to_q
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    with fp8_products(model.transformer):
        got, v = layer(x), seen(model)
    factors = [y.float() * scale for y, scale in (rounded(x.flatten(0, 1)), rounded(layer.weight.detach()))]
    torch.testing.assert_close(got.flatten(0, 1), factors[0] @ factors[1].T + layer.bias, atol=1e-5, rtol=1e-5)
    assert 1e-3 < (v - plain).norm() / plain.norm() < 0.1
    assert torch.equal(seen(model), plain)


def test_fp8_products_leave_the_lora_as_it_is(tiny_flux):
    model = load_model(tiny_flux)
    add_lora(model.transformer, 4, 8, ATTENTION)
    with fp8_products(model.transformer):
        before = seen(model)
        for name, p in model.transformer.named_parameters():
            if "lora_B" in name:
                p.data.normal_(std=0.1)
        assert (seen(model) - before).norm() > 0.01 * before.norm()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_lora_learns_over_a_quantized_transformer(tiny_flux, tmp_path, kind, capsys):
    pytest.importorskip("torchao")
    plain, model = load_model(tiny_flux), load_model(tiny_flux, quantize=kind)
    stored = model.transformer.transformer_blocks[0].attn.to_q.weight
    assert "torchao" in type(stored).__module__
    assert 1e-4 < (seen(model) - seen(plain)).norm() / seen(plain).norm() < 0.1
    more = [f"model.quantize={kind}", "watch=[jpeg_size]", "iterations=2"]
    run = Trainer(load_config(None, settings(tiny_flux, tmp_path, *more))).run()
    lines = metrics(run)[1:]
    assert all(line["ratio/noise_floor"] < 1e-4 and line["grad_norm"] > 0 for line in lines)
    assert (run / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert "model.gradient_checkpointing=true" in capsys.readouterr().out


def test_moments_in_8_bits_learn_much_alike_and_are_resumed(tiny_flux, tmp_path):
    """A LoRA large enough to have any: 4096 numbers in a matrix."""
    pytest.importorskip("bitsandbytes")
    more = ["watch=[jpeg_size]", "iterations=3", "model.lora.rank=96", "save_every=2", "ema=null"]
    runs = {}
    for name in ("adamw", "adamw_8bit"):
        here = tmp_path / name
        here.mkdir()
        runs[name] = Trainer(load_config(None, settings(tiny_flux, here, *more, f"optimizer.name={name}"))).run()
    start, plain, small = (
        load_file(run / "checkpoints" / number / "weights.safetensors")
        for run, number in ((runs["adamw"], "000002"), (runs["adamw"], "000003"), (runs["adamw_8bit"], "000003"))
    )
    apart, moved = (torch.cat([(a[key] - b[key]).flatten() for key in a]).norm() for a, b in ((plain, small), (plain, start)))
    assert 0 < apart < 0.2 * moved
    state = torch.load(runs["adamw_8bit"] / "checkpoints" / "000002" / "state.pt", weights_only=True)
    kinds = {str(x.dtype) for x in tensors(state["optimizer"]["state"])}
    assert "torch.uint8" in kinds
    shutil.rmtree(runs["adamw_8bit"] / "checkpoints" / "000003")
    again = Trainer.resume(runs["adamw_8bit"])
    again.run()
    once_more = load_file(runs["adamw_8bit"] / "checkpoints" / "000003" / "weights.safetensors")
    assert all(torch.equal(once_more[key], small[key]) for key in small)


def tensors(state):
    for value in state.values():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


def test_fp8_rollouts_show_their_noise_floor(tiny_flux, tmp_path):
    """The old policy is the rounded one: the first ratio is not 1 any more, and the figure says by how much."""
    more = ["model.fp8_rollout=true", "watch=[jpeg_size]", "iterations=1"]
    run = Trainer(load_config(None, settings(tiny_flux, tmp_path, *more))).run()
    assert 1e-6 < metrics(run)[1]["ratio/noise_floor"] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "nf4"}, "nf4 needs a CUDA device"),
        ({"attention": "flash"}, "model.attention=flash: .*flash"),
        ({"attention": "fastest"}, "model.attention=fastest: .*must be one of"),
    ],
)
def test_what_is_not_here_is_said_in_one_line(tiny_flux, settings, message):
    if torch.cuda.is_available():
        pytest.skip("it may be here")
    with pytest.raises(UserError, match=message):
        load_model(tiny_flux, **settings)


def test_an_attention_backend_gives_the_same_velocity(tiny_flux):
    plain, model = load_model(tiny_flux), load_model(tiny_flux, attention="_native_math")
    try:
        torch.testing.assert_close(seen(model), seen(plain))
    finally:
        choose_attention(model.transformer, "native")  # diffusers keeps the choice for the whole process


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.quantize=int8", "model.lora=null"], "quantize=int8.*model.lora"),
        (
            ["model.quantize=int8", "model.fp8_rollout=true"],
            "model.fp8_rollout.*model.quantize",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        load_config(None, changes)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_velocity_and_train(tiny_flux, tmp_path):
    more = ["watch=[jpeg_size]", "iterations=1"]
    lines = []
    for compiled in ("false", "true"):
        here = tmp_path / compiled
        here.mkdir()
        lines.append(metrics(Trainer(load_config(None, settings(tiny_flux, here, *more, f"model.compile={compiled}"))).run()))
    for key in ("reward/", "loss", "grad_norm"):
        plain, fast = (next(value for name, value in line[1].items() if name.startswith(key)) for line in lines)
        assert fast == pytest.approx(plain, rel=1e-3, abs=1e-6)
