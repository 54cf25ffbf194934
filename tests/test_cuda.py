"""The same run on a GPU and on the CPU: skipped where there is no CUDA device.

`pytest -s tests/test_cuda.py` prints the differences that docs/gpu.md holds (without -n: its workers print nothing).
"""

import math
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it; read when CUDA starts

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import metrics, settings
from safetensors.torch import load_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models.backends import choose_attention
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.training.trainer import Trainer
from neighbor_grpo.worlds import pretrain
from neighbor_grpo.worlds.words.pretrain import RECIPE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

FEW = ["iterations=1", "prompts.per_iteration=1", "evaluate.every=0", "evaluate.prompts=1"]
SMALL = [*FEW, "save_every=1", "ema=null", "watch=[jpeg_size]"]
ROOM = {"float32": 1e-2, "bfloat16": math.inf}  # of the gradient's relative error; in bfloat16 a clip of 1e-4 decides
BACKENDS = [
    "_native_flash",
    "_native_efficient",
    "_native_cudnn",
    "_native_math",
    "flex",
    "flash",
    "_flash_3",
    "sage",
    "xformers",
]


def seen(model):
    """The velocity of two prompts at one state."""
    x = model.noise(2, torch.Generator().manual_seed(0))
    return model.velocity(x, 0.6, model.encode(["a red circle", "two blue stars"])).detach().float().cpu()


@pytest.fixture
def deterministic():
    """Kernels that give the same bits each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradient(run, iteration="000001"):
    """AdamW's first moments: of one optimizer step a tenth of its gradient."""
    state = torch.load(run / "checkpoints" / iteration / "state.pt", weights_only=True)["optimizer"]["state"]
    return torch.cat([one["exp_avg"].flatten().double().cpu() for one in state.values()])


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """One iteration of each method on the CPU, made once."""
    made = {}

    def run(method):
        if method not in made:
            made[method] = one_iteration(method, tmp_path_factory.mktemp(method), "device=cpu")
        return made[method]

    return run


def one_iteration(method, place, *more):
    AcceleratorState._reset_state(reset_partial_state=True)  # a process keeps its first device otherwise
    config = load_config(None, [*SMALL, f"run_dir={place / 'run'}", *more], [method, "scenes"])
    return Trainer(config).run()


@pytest.mark.parametrize("dtype", ROOM)
@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_is_the_one_of_the_cpu(method, dtype, on_cpu, tmp_path):
    theirs, ours = on_cpu(method), one_iteration(method, tmp_path, "device=cuda", f"model.dtype={dtype}")
    apart = (gradient(ours) - gradient(theirs)).norm() / gradient(theirs).norm()
    rewards = [metrics(run)[1]["reward/scenes"] for run in (theirs, ours)]
    print(f"\n{method} {dtype}: gradient {apart:.1e}, reward {rewards[0]:.5f} and {rewards[1]:.5f}", end="")
    assert apart < ROOM[dtype]
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-3 if dtype == "float32" else 0.02)


@pytest.mark.parametrize("method", ["neighbor", "neighbor_late", "flow_grpo", "nft"])
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(method, tmp_path, deterministic):
    more = ["device=cuda", "keep_checkpoints=5"]
    whole = one_iteration(method, tmp_path / "a", *more, "iterations=3")
    half = one_iteration(method, tmp_path / "b", *more, "iterations=2")
    Trainer.resume(half, ["iterations=3"]).run()
    first, second = (load(run) for run in (whole, half))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def load(run):
    return load_file(run / "checkpoints" / "000003" / "weights.safetensors")


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.4), ("int8", 0.05), ("fp8", 0.1)])
def test_quantized_weights_give_nearly_the_same_velocity_and_a_lora_learns(tiny_flux, tmp_path, kind, most):
    pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")
    plain = seen(load_model(tiny_flux, "cuda", torch.bfloat16))
    apart = (seen(load_model(tiny_flux, "cuda", torch.bfloat16, quantize=kind)) - plain).norm() / plain.norm()
    print(f"\n{kind}: velocity {apart:.1e}", end="")
    assert 0 < apart < most
    AcceleratorState._reset_state(reset_partial_state=True)
    more = ["device=cuda", f"model.quantize={kind}", "watch=[jpeg_size]", "iterations=2"]
    lines = metrics(Trainer(load_config(None, settings(tiny_flux, tmp_path, *more))).run())[1:]
    assert all(line["grad_norm"] > 0 for line in lines)


def test_moments_in_8_bits_learn_much_alike(tiny_flux, tmp_path):
    pytest.importorskip("bitsandbytes")
    weights = {}
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("adamw", "adamw_8bit"):
        place = tmp_path / name
        place.mkdir()
        more = ["device=cuda", "watch=[jpeg_size]", "model.lora.rank=96", "ema=null", f"optimizer.name={name}"]
        run = Trainer(load_config(None, settings(tiny_flux, place, *more))).run()
        weights[name] = torch.cat([x.flatten() for x in load(run).values()])
    apart = (weights["adamw"] - weights["adamw_8bit"]).norm() / weights["adamw"].norm()
    print(f"\nadamw_8bit: weights {apart:.1e}", end="")
    assert 0 < apart < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_attention_backend_gives_the_same_velocity(backend):
    model = load_model("scenes", "cuda", torch.bfloat16)
    plain = seen(model)
    try:
        choose_attention(model.transformer, backend)
        apart = (seen(model) - plain).norm() / plain.norm()
    except (UserError, RuntimeError, ValueError) as error:
        pytest.skip(f"{backend}: {str(error)[:100]}")
    finally:
        choose_attention(model.transformer, "native")
    print(f"\n{backend}: velocity {apart:.1e}", end="")
    assert apart < 2e-2


@pytest.mark.parametrize("setting", ["model.compile=true", "model.gradient_checkpointing=true"])
def test_a_faster_or_smaller_way_learns_the_same(setting, on_cpu, tmp_path):
    run = one_iteration("neighbor", tmp_path, "device=cuda", "model.dtype=float32", setting)
    apart = (gradient(run) - gradient(on_cpu("neighbor"))).norm() / gradient(on_cpu("neighbor")).norm()
    print(f"\n{setting}: gradient {apart:.1e}", end="")
    assert apart < ROOM["float32"]


def test_a_rollout_in_8_bits_draws_nearly_the_same_pictures(on_cpu, tmp_path):
    run = one_iteration("neighbor", tmp_path, "device=cuda", "model.dtype=bfloat16", "model.fp8_rollout=true")
    whole, rounded = (metrics(one)[1] for one in (on_cpu("neighbor"), run))
    print(f"\nfp8_rollout: reward {whole['reward/scenes']:.5f} and {rounded['reward/scenes']:.5f}", end="")
    assert rounded["reward/scenes"] == pytest.approx(whole["reward/scenes"], abs=0.05)
    assert rounded["ratio/noise_floor"] > 0  # the update computes in 16 bits what the rollout computed in 8


def test_a_recipe_in_graphs_learns_what_it_learns_without(monkeypatch):
    weights = {}
    for graphs in (True, False):
        if not graphs:
            monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda model, *_, **__: model)
        torch.manual_seed(0)
        _, clip, _, t5 = RECIPE.text()
        parts = {"transformer": RECIPE.transformer(), "text_encoder": clip, "text_encoder_2": t5}
        vae = RECIPE.vae()
        vae.register_to_config(shift_factor=0.0)
        ids = torch.ones(8, 24, dtype=torch.long, device="cuda"), torch.ones(8, 12, dtype=torch.long, device="cuda")
        steps = pretrain.Settings(vae_steps=1, steps=5, pictures=8, batch=8, seed=0)
        phase, loss = pretrain.flow_phase(vae, parts, torch.randn(8, 16, 4, 12, device="cuda"), ids, steps, 0.0)
        list(phase.run(loss, "cuda", None))
        weights[graphs] = torch.cat([x.detach().flatten() for x in phase.module.parameters()])
    apart = (weights[True] - weights[False]).norm() / weights[False].norm()
    print(f"\ngraphs: weights {apart:.1e}", end="")
    assert apart < 1e-2
