import pytest
import torch
from checkpoints import attend, bert_tokenizer, bert_tokens, head, imagereward_state, linear, norm, normalised, patches
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.rewards.learned.convert import convert
from neighbor_grpo.rewards.learned.imagereward import ImageReward
from neighbor_grpo.rewards.learned.images import crop

TEXTS = ["a red circle left of a blue square", "blue", "red " * 50, "a green circle"]


def see(w, square):
    """[3, H, W] -> [1 + patches, width]"""
    v = "blip.visual_encoder"
    x = patches(square, w[f"{v}.patch_embed.proj.weight"]) + w[f"{v}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{v}.cls_token"][0], x]) + w[f"{v}.pos_embed"][0]
    for n in range(2):
        block = f"{v}.blocks.{n}"
        q, k, u = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attend(q, k, u, 3))
        x = x + linear(w, f"{block}.mlp.fc2", gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6))))
    return norm(w, f"{v}.norm", x, 1e-6)


def look(w, attention, x, source):
    q, k, v = (linear(w, f"{attention}.self.{part}", y) for part, y in (("query", x), ("key", source), ("value", source)))
    return norm(w, f"{attention}.output.LayerNorm", linear(w, f"{attention}.output.dense", attend(q, k, v, 2)) + x, 1e-12)


def reward_by_hand(w, square, prompt):
    """No padding and no mask: every token attends to every other, and to the whole picture."""
    seen, t = see(w, normalised(square)), "blip.text_encoder"
    tokens = bert_tokens(prompt, 35)
    x = w[f"{t}.embeddings.word_embeddings.weight"][tokens] + w[f"{t}.embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(w, f"{t}.embeddings.LayerNorm", x, 1e-12)
    for n in range(3):
        layer = f"{t}.encoder.layer.{n}"
        x = look(w, f"{layer}.attention", x, x)
        x = look(w, f"{layer}.crossattention", x, seen)
        inner = gelu(linear(w, f"{layer}.intermediate.dense", x))
        x = norm(w, f"{layer}.output.LayerNorm", linear(w, f"{layer}.output.dense", inner) + x, 1e-12)
    return (float(head(w, "mlp.", x[0])) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def state():
    return imagereward_state()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    home = tmp_path_factory.mktemp("imagereward")
    # what the published file has besides, and nothing reads
    unused = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None], "blip.vision_proj.weight": torch.ones(5, 48)}
    torch.save({**unused, **state}, home / "published.pt")
    words = bert_tokenizer(home / "words")
    return convert("imagereward", home / "published.pt", home / "out", str(words), vision_heads=3, text_heads=2)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 33, 50, generator=torch.Generator().manual_seed(1))


def test_against_a_plain_forward_pass(state, weights, images):
    wanted = [reward_by_hand(state, square, prompt) for square, prompt in zip(crop(images, 28), TEXTS, strict=True)]
    scores = ImageReward(weights=str(weights), device="cpu")(images, TEXTS, [{}] * 4)
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5)
    same_picture = [reward_by_hand(state, crop(images, 28)[0], prompt) for prompt in TEXTS]
    same_prompt = [reward_by_hand(state, square, TEXTS[0]) for square in crop(images, 28)]
    for values in (wanted, same_picture, same_prompt):  # the comparison means something
        assert min(abs(a - b) for n, a in enumerate(values) for b in values[:n]) > 1e-3


def test_neither_batch_nor_half_precision_change_much(weights, images):
    whole = ImageReward(weights=str(weights), device="cpu")(images, TEXTS, [{}] * 4)
    apart = ImageReward(weights=str(weights), device="cpu", batch=1, offload=True)(images, TEXTS, [{}] * 4)
    half = ImageReward(weights=str(weights), device="cpu", dtype="bfloat16")(images, TEXTS, [{}] * 4)
    assert torch.allclose(apart, whole, atol=1e-6) and torch.allclose(half, whole, atol=0.1) and not torch.equal(half, whole)


def test_bad_pictures_are_refused(weights, images):
    with pytest.raises(UserError, match="finite"):
        ImageReward(weights=str(weights), device="cpu")(images / 0, TEXTS, [{}] * 4)


def test_no_weight_is_left_random(weights, tmp_path):
    for file in weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["mlp.layers.4.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    atomic.seal(tmp_path, "scorer")  # undamaged, and not whole
    with pytest.raises(UserError, match=r"imagereward: .*lack mlp\.layers\.4\.bias"):
        ImageReward(weights=str(tmp_path)).load()


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="rewards convert imagereward CHECKPOINT"):
        ImageReward().load()
