import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, Flux2Pipeline
from family_flux2 import LENGTH, build, parts

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.training.learner import Learner

PROMPTS = ["a red circle left of a blue square", "three green triangles"]
CHAT = "{% for message in messages if message.role == 'user' %}{{ message.content[0].text }}{% endfor %}"  # short of dev's own


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    directory = tmp_path_factory.mktemp("klein")
    build(is_distilled=True).save_pretrained(directory)
    return directory


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("guidance", [4.0, 1.5])
def test_dev_takes_guidance_scale(tmp_path, guidance):
    """Its text encoder and processor are stood in for by klein's: they are the pipeline's business alone."""
    components = parts(guidance=True)
    components["tokenizer"].chat_template = CHAT
    Flux2Pipeline(**components).save_pretrained(tmp_path)
    model = load_model(tmp_path, guidance_scale=guidance, height=48)
    noise = model.noise(2, seeded(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    theirs = DiffusionPipeline.from_pretrained(tmp_path)(
        prompt=PROMPTS,
        height=48,
        width=32,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise.mT.unflatten(2, model.grid),
        max_sequence_length=LENGTH,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_distilled_klein_refuses_classifier_free_guidance(klein):
    with pytest.raises(UserError, match="set cfg to 1, not 4"):
        load_model(klein, cfg=4.0)


def test_noise_is_the_pipelines_own_for_a_seed(klein):
    model, pipe = load_model(klein, height=48), DiffusionPipeline.from_pretrained(klein)
    theirs, _ = pipe.prepare_latents(1, 4, 48, 32, torch.float32, "cpu", seeded(3))
    assert torch.equal(model.noise(1, seeded(3)), theirs)


def test_the_shift_depends_on_size_and_steps(klein):
    small, large = (load_model(klein, height=height) for height in (32, 512))
    assert small.times(4)[2] != pytest.approx(large.times(4)[2], abs=1e-3)
    assert small.times(4)[2] != pytest.approx(small.times(40)[20], abs=1e-3)


def test_a_lora_reaches_every_attention_projection(klein):
    """Of the double block its eight, of the single block the layer before the attention and the one after."""
    learner = Learner(load_model(klein), load_config([]), Accelerator(cpu=True))
    adapted = {name.split(".lora_")[0] for name in learner.weights}
    double = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    single = ["to_qkv_mlp_proj", "to_out"]
    assert adapted == {
        *(f"transformer_blocks.0.attn.{name}" for name in double),
        *(f"single_transformer_blocks.0.attn.{name}" for name in single),
    }
