"""What is estimated on the meta device, against the allocator's own record of real runs, and against formulas.

The allocator is the CPU's: attention, norms and convolutions are those of its kernels.  Of a convolution the kernels' own
copies of input and weight are counted, which oneDNN makes; cuDNN's workspaces were not there to compare.
"""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from runs import settings
from torch.profiler import ProfilerActivity, profile

from neighbor_grpo.config import load_config
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.lora import train_all
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.text_cache import ENCODE_BATCH, TextCache
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.footprint import Followed, nbytes
from neighbor_grpo.planning.kernels import Kernels, attention
from neighbor_grpo.planning.machine import matrix_rate, memory_of
from neighbor_grpo.training.trainer import Trainer

META = torch.device("meta")


def skip_without_bfloat16(wanted: bool) -> None:
    if wanted and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 products: it convolves through copies that no GPU makes")


def allocated(work) -> int:
    """The most bytes that were there at once, beyond those before, by the allocator's record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


@pytest.mark.parametrize(
    "changes",
    [
        (),
        pytest.param(("model.dtype=bfloat16",), marks=pytest.mark.slow),
        pytest.param(("model.gradient_checkpointing=true",), marks=pytest.mark.slow),
        pytest.param(("model.gradient_checkpointing=true", "model.dtype=bfloat16"), marks=pytest.mark.slow),
        pytest.param(("model.lora=null",), marks=pytest.mark.slow),
        pytest.param(("model.lora=null", "model.dtype=bfloat16"), marks=pytest.mark.slow),  # autocast
        ("model.lora=null", "model.dtype=bfloat16", "model.gradient_checkpointing=true", "batch.update=2"),
        pytest.param(("batch.decode=8",), marks=pytest.mark.slow),
        pytest.param(("batch.decode=8", "model.dtype=bfloat16"), marks=pytest.mark.slow),
        pytest.param(("batch.update=1",), marks=pytest.mark.slow),
        pytest.param(("batch.rollout=4",), marks=pytest.mark.slow),
        ("method={name: flow_grpo, group_size: 4, num_steps: 3, kl: 0.1}",),
        ("method={name: branch_grpo, group_size: 4, num_steps: 4, splits: [0, 1]}",),
    ],
    ids=" ".join,
)
def test_an_iterations_peak_is_within_five_percent_of_the_allocators(tiny_flux, tmp_path, changes):
    """States, choices, activations and gradients of a whole iteration, where they outweigh the pictures, which a GPU's lack."""
    skip_without_bfloat16("model.dtype=bfloat16" in changes)
    config = load_config(None, settings(tiny_flux, tmp_path, "model.height=192", "model.width=192", "batch.decode=1", *changes))
    held, trainer = estimate(config, "cpu"), Trainer(config)
    trainer._iteration(0)  # the optimizer's states and the texts are there after the first
    expected = held.peak - sum(held.resident.values())
    assert expected == pytest.approx(allocated(lambda: trainer._iteration(1)), rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_packed_weights_are_kept_unpacked_where_gradients_pass(tiny_flux, tmp_path, kind, checkpointing):
    """torchao's take less, but what autograd keeps of them is unpacked; of a block that is computed once more, nothing."""
    config = load_config(
        None,
        settings(
            tiny_flux,
            tmp_path,
            "model.dtype=bfloat16",
            f"model.quantize={kind}",
            "batch.update=4",
            f"model.gradient_checkpointing={checkpointing}",
            "model.height=64",
            "model.width=64",
        ),
    )
    held, model = estimate(config, "cpu"), load_model(tiny_flux, dtype=torch.bfloat16, quantize=kind, height=64, width=64)
    parts = [
        part
        for weight in model.transformer.parameters()
        for part in ([weight.qdata, weight.scale] if hasattr(weight, "qdata") else [weight])
    ]
    assert held.resident["transformer"] == pytest.approx(sum(part.nbytes for part in parts), rel=0.1)  # scales count 0
    add_lora(model.transformer, 2, 4, list(model.lora_targets))
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    x, cond = model.noise(4, torch.Generator()), model.blank(4)
    real = allocated(lambda: model.velocity(x, 0.5, cond).sum().backward())
    assert held.phases["update"]["activations"] == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_is_the_allocators(dtype):
    skip_without_bfloat16(dtype == torch.bfloat16)

    def vae():
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            latent_channels=4,
        ).to(dtype)

    real, x = vae(), torch.zeros(2, 4, 32, 32, dtype=dtype)
    with META:
        bare = vae()
    with torch.no_grad():
        peak = allocated(lambda: real.decode(x))
        with Kernels("cpu").of(bare), Followed(1) as seen:
            bare.decode(x.to(META))
    assert seen.peak == pytest.approx(peak, rel=0.05)


def test_autocast_keeps_a_copy_of_every_weight_where_gradients_pass(tiny_flux, tmp_path):
    """Of few tokens, where weights are most: a rollout casts them one after another, and is planned so."""
    config = load_config(
        None,
        settings(
            tiny_flux,
            tmp_path,
            "model.lora=null",
            "model.dtype=bfloat16",
            "model.height=8",
            "model.width=8",
            "batch.rollout=1",
            "model.max_sequence_length=2",
            "batch.update=1",
        ),
    )
    model = load_model(tiny_flux, dtype=torch.bfloat16, height=8, width=8, max_sequence_length=2)
    train_all(model.transformer)
    x, cond = model.noise(1, torch.Generator()), model.blank(1)
    copies = 2 * sum(weight.numel() for weight in model.transformer.parameters())
    with torch.no_grad():
        assert allocated(lambda: model.velocity(x, 0.5, cond)) < 0.2 * copies
    assert allocated(lambda: model.velocity(x, 0.5, cond)) > 0.9 * copies
    held = estimate(config, "cpu")
    assert held.phases["rollout"]["activations"] < 0.2 * copies and held.phases["update"]["activations"] > 0.9 * copies


def test_encoding_is_the_allocators(tiny_flux, tmp_path):
    """All prompts as long as can be: T5, of FLUX's two encoders."""
    model = load_model(tiny_flux)
    tokens = torch.zeros(ENCODE_BATCH, model.max_sequence_length, dtype=torch.long)
    with torch.no_grad():
        real = max(
            allocated(lambda: model.pipe.text_encoder_2(tokens)),
            allocated(lambda: model.pipe.text_encoder(tokens[:, :12], output_hidden_states=True)),
        )
    held = estimate(load_config(None, settings(tiny_flux, tmp_path)), "cpu")
    assert held.phases["encode"]["activations"] == pytest.approx(real, rel=0.1)
    assert inspect.signature(TextCache.encode).parameters["batch"].default == ENCODE_BATCH


def test_resident_are_weights_optimizer_and_average(tiny_flux, tmp_path):
    for n, changes in enumerate(((), ("model.lora=null", "ema=null"), ("model.dtype=bfloat16", "model.lora.rank=7"))):
        config = load_config(None, settings(tiny_flux, tmp_path, *changes, f"run_dir={tmp_path / str(n)}"))
        held, trainer = estimate(config, "cpu"), Trainer(config)
        trainer._iteration(0)
        learner, pipe, lora = trainer.learner, trainer.parts.model.pipe, bool(config.model.lora)
        moments = [value for state in learner.optimizer.state.values() for value in state.values() if value.ndim]
        assert held.trained == sum(weight.numel() for weight in learner.weights.values())
        assert held.parameters == sum(weight.numel() for weight in trainer.parts.model.transformer.parameters())
        assert held.resident == {
            name: size
            for name, size in {
                "transformer": nbytes(w for w in trainer.parts.model.transformer.parameters() if w.requires_grad != lora),
                "LoRA": nbytes(learner.weights.values()) if lora else 0,
                "optimizer": nbytes(moments),
                "average": nbytes(learner.ema.shadow_params) if learner.ema else 0,
                "VAE": nbytes(pipe.vae.parameters()),
                "encoders": nbytes([*pipe.text_encoder.parameters(), *pipe.text_encoder_2.parameters()]),
            }.items()
            if size
        }


# ------------------------------------------------------------------------ operations


def by_hand(n: int, text: int, d: int, backward: bool) -> int:
    """FLOPs of a row through a FLUX of one double and two single blocks of width d, 40 + 32 channels of text, 16 of image."""
    weights = lambda rows, inside, outside: 2 * rows * inside * outside  # noqa: E731
    both = n + text
    embedded = weights(n, 16, d) + weights(text, 40, d)
    once = 2 * (weights(1, 256, d) + weights(1, d, d)) + weights(1, 32, d) + weights(1, d, d)  # time, guidance, pooled text
    attention = 2 * 2 * both * both * d
    double = 2 * weights(1, d, 6 * d) + weights(both, d, d) * 4 + weights(both, d, 4 * d) * 2 + attention
    single = weights(1, d, 3 * d) + weights(both, d, d) * 3 + weights(both, d, 4 * d) + weights(both, 5 * d, d) + attention
    last = weights(1, d, 2 * d) + weights(n, d, 16)
    total = embedded + once + double + 2 * single + last
    if not backward:
        return total
    # twice the forward for the gradients of weights and inputs, but for inputs that have none; attention 5 products for 2
    return 3 * total - embedded - 2 * weights(1, 256, d) - weights(1, 32, d) + 3 * attention // 2


def test_operations_are_those_counted_by_hand(tiny_flux, tmp_path):
    config = load_config(None, settings(tiny_flux, tmp_path, "model.lora=null", "model.height=64", "model.width=96"))
    held = estimate(config, "cuda")
    assert held.forward == by_hand(8 * 12, 24, 48, backward=False)
    assert held.update == by_hand(8 * 12, 24, 48, backward=True)
    once_more = estimate(
        load_config(
            None,
            settings(
                tiny_flux, tmp_path, "model.lora=null", "model.height=64", "model.width=96", "model.gradient_checkpointing=true"
            ),
        ),
        "cuda",
    )
    assert 0.9 * held.forward < once_more.update - held.update < held.forward
    guided = estimate(
        load_config(None, settings(tiny_flux, tmp_path, "model.lora=null", "model.height=64", "model.width=96", "model.cfg=2")),
        "cuda",
    )
    assert guided.forward == 2 * held.forward


def test_bytes_are_followed_until_they_are_gone():
    weight = torch.empty(100, 100, device=META)
    with Followed(block=512) as seen:
        x = torch.empty(10, device=META)
        assert seen.held == 512  # as CUDA's allocator rounds
        y = x.view(2, 5).t()
        y += 1
        weight.t()[3:], weight.mul_(2)
        assert seen.held == 512
        z = y * 2
        assert seen.held == seen.peak == 1024
        del x, y
        assert seen.held == 512
        torch.zeros(1000)  # on the CPU
        weight @ weight
        assert [int(number) for number in torch.arange(3)] == [0, 1, 2]  # values are never remembered
    assert z is not None and (seen.held, seen.peak, seen.flops) == (512, 512 + 40448, 2 * 100**3)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("mask", [None, torch.bool])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_keeps_no_scores(device, mask, dtype):
    q, k, v = (torch.empty(2, 4, 1024, 16, device=META, dtype=dtype, requires_grad=True) for _ in range(3))
    keep = None if mask is None else torch.empty(2, 1, 1, 1024, device=META, dtype=mask)
    with Followed() as seen:
        torch.autograd.backward(attention(device, q, k, v, attn_mask=keep).sum())
    assert q.grad.shape == q.shape and seen.flops == 2 * 4 * (2 + 5) * 2 * 1024**2 * 16
    assert seen.peak < 8 * q.nbytes < 2 * 4 * 1024**2


def test_on_a_gpu_norms_and_attention_are_one_kernel_each():
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=40,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 6, 6),
        ).to(torch.bfloat16)
    x = {"device": META, "dtype": torch.bfloat16}
    peaks = {}
    for device in ("cpu", "cuda"):
        with Kernels(device).of(model), Followed() as seen:
            y = model(
                torch.empty(1, 256, 16, **x),
                torch.empty(1, 8, 40, **x),
                torch.empty(1, 32, **x),
                torch.empty(1, **x),
                torch.empty(256, 3, **x),
                torch.empty(8, 3, **x),
            ).sample
            torch.autograd.backward(y.float().sum())
        peaks[device] = seen.peak
        model.zero_grad()
    assert peaks["cuda"] < 0.9 * peaks["cpu"]  # which squares its norms' inputs in fp32


def test_the_machine_is_measured_once():
    cpu = torch.device("cpu")
    assert matrix_rate(cpu, torch.float32) == matrix_rate(cpu, torch.float32) > 1e8
    assert 1e8 < memory_of(cpu) < 1e14
