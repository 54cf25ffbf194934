import json
from fnmatch import fnmatch

import pytest
import torch
from checkpoints import (
    attend,
    clip_tokenizer,
    clip_tokens,
    head,
    head_state,
    linear,
    norm,
    normalised,
    open_clip_state,
    patches,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.check import PROMPTS, check
from neighbor_grpo.rewards.learned import base as learned
from neighbor_grpo.rewards.learned import files
from neighbor_grpo.rewards.learned.clip import Aesthetic, ClipScore, HPSv21, PickScore
from neighbor_grpo.rewards.learned.convert import convert
from neighbor_grpo.rewards.learned.images import crop, pad, squash
from neighbor_grpo.rewards.scorer import Scorer

CONTEXT = 16
LONG = "a very long prompt whose last words are cut off"
TEXTS = ["red dot", LONG, "red dot", "a"]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def tower(w, prefix, x, heads, act, causal=False):
    n = 0
    while f"{prefix}.resblocks.{n}.ln_1.weight" in w:
        block = f"{prefix}.resblocks.{n}"
        h = norm(w, f"{block}.ln_1", x, 1e-5)
        q, k, v = (h @ w[f"{block}.attn.in_proj_weight"].T + w[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.out_proj", attend(q, k, v, heads, causal))
        h = norm(w, f"{block}.ln_2", x, 1e-5)
        x = x + linear(w, f"{block}.mlp.c_proj", act(linear(w, f"{block}.mlp.c_fc", h)))
        n += 1
    return x


def image_feature(w, square, act=gelu):
    x = torch.cat([w["visual.class_embedding"][None], patches(normalised(square), w["visual.conv1.weight"])])
    x = norm(w, "visual.ln_pre", x + w["visual.positional_embedding"], 1e-5)
    x = norm(w, "visual.ln_post", tower(w, "visual.transformer", x, 3, act)[0], 1e-5) @ w["visual.proj"]
    return x / x.norm()


def text_feature(w, prompt, act=gelu):
    tokens = clip_tokens(prompt, CONTEXT)
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)]
    x = norm(w, "ln_final", tower(w, "transformer", x, 2, act, causal=True), 1e-5)[-1] @ w["text_projection"]
    return x / x.norm()


def cosines(w, squares, prompts, act=gelu):
    return [float(image_feature(w, s, act) @ text_feature(w, p, act)) for s, p in zip(squares, prompts, strict=True)]


@pytest.fixture(scope="module")
def state():
    return open_clip_state()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """The directory that `convert` makes of the published layout."""
    home = tmp_path_factory.mktemp("clip")
    torch.save({"epoch": 3, "state_dict": state}, home / "published.pt")
    words = clip_tokenizer(home / "words")
    return convert("hpsv2.1", home / "published.pt", home / "out", str(words), vision_heads=3, text_heads=2)


@pytest.fixture
def copy(weights, tmp_path):
    for file in weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").unlink()  # a directory that `convert` did not write
    return tmp_path


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 33, 50, generator=torch.Generator().manual_seed(1))


def scorer(kind, weights, **settings):
    return kind(weights=str(weights), device="cpu", **settings)


def close(scores, wanted):
    assert scores.shape == (4,) and scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5)


def test_hpsv21_against_a_plain_forward_pass(state, weights, images):
    wanted = cosines(state, pad(images, 28), TEXTS)
    close(scorer(HPSv21, weights)(images, TEXTS, [{}] * 4), wanted)
    assert len(set(wanted)) == 4 and max(map(abs, wanted)) > 0.05  # the comparison means something


def test_pickscore_is_scaled_and_cropped(state, weights, images):
    wanted = [torch.tensor(2.5).exp().item() * value for value in cosines(state, crop(images, 28), TEXTS)]
    close(scorer(PickScore, weights)(images, TEXTS, [{}] * 4), wanted)


def test_clip_score_is_squashed_and_takes_the_activation_of_its_config(state, copy, images):
    config = json.loads((copy / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part]["hidden_act"] = "quick_gelu"
    (copy / "config.json").write_text(json.dumps(config))
    close(scorer(ClipScore, copy)(images, TEXTS, [{}] * 4), cosines(state, squash(images, 28), TEXTS, quick_gelu))


def test_aesthetic_is_linear_in_the_unit_feature_and_blind_to_prompts(state, weights, images, tmp_path):
    grades = head_state()
    torch.save(grades, tmp_path / "published.pth")
    place = convert("aesthetic", tmp_path / "published.pth", tmp_path / "out")
    wanted = [float(head(grades, "", image_feature(state, square))) for square in crop(images, 28)]
    reward = scorer(Aesthetic, place, clip=str(weights))
    close(reward(images, TEXTS, [{}] * 4), wanted)
    close(reward(images, ["other"] * 4, [{}] * 4), wanted)


def test_the_head_of_another_clip_is_refused(weights, tmp_path):
    torch.save(head_state(width=30), tmp_path / "published.pth")
    place = convert("aesthetic", tmp_path / "published.pth", tmp_path / "out")
    with pytest.raises(UserError, match=r"another shape of layers\.0\.weight"):
        scorer(Aesthetic, place, clip=str(weights)).load()
    with pytest.raises(UserError, match=r"aesthetic: .*scorers: \{aesthetic: \{clip: PATH\}\}"):
        scorer(Aesthetic, place, clip=str(tmp_path / "no clip")).load()


def test_neither_batch_nor_neighbours_change_a_score(weights, images):
    whole = scorer(HPSv21, weights)(images, TEXTS, [{}] * 4)
    for batch in (1, 3):
        assert torch.allclose(scorer(HPSv21, weights, batch=batch)(images, TEXTS, [{}] * 4), whole, atol=1e-6)
    assert torch.allclose(scorer(HPSv21, weights)(images[3:], TEXTS[3:], [{}]), whole[3:], atol=1e-6)


def test_equal_prompts_are_encoded_once_and_all_at_full_length(weights, images):
    reward, seen = scorer(HPSv21, weights), []
    encode = reward.model.clip.get_text_features
    reward.model.clip.get_text_features = lambda input_ids: seen.append(input_ids.shape) or encode(input_ids=input_ids)
    reward(images, TEXTS, [{}] * 4)
    reward(images[:2], ["a", "a"], [{}] * 2)
    assert seen == [(3, CONTEXT), (1, CONTEXT)]


def test_half_precision_is_near(weights, images):
    whole = scorer(PickScore, weights)(images, TEXTS, [{}] * 4)
    half = scorer(PickScore, weights, dtype="bfloat16")(images, TEXTS, [{}] * 4)
    assert not torch.equal(half, whole) and torch.allclose(half, whole, atol=0.5)


@pytest.mark.parametrize("offload", [True, False])
def test_weights_are_on_the_device_only_while_they_are_used(weights, images, offload, monkeypatch):
    reward, places = scorer(HPSv21, weights, offload=offload), []
    monkeypatch.setattr(learned, "pick_device", lambda name: torch.device("cpu", 0))  # a device one can tell from the CPU
    model = reward.model
    move, score_batch = type(model).to, HPSv21.score_batch
    monkeypatch.setattr(type(model), "to", lambda self, where: places.append(str(where)) or move(self, where))
    monkeypatch.setattr(HPSv21, "score_batch", lambda *given: places.append("scores") or score_batch(*given))
    reward(images, TEXTS, [{}] * 4)
    assert places == (["cpu:0", "scores", "cpu"] if offload else ["cpu:0", "scores"])
    assert all(p.device.type == "cpu" and not p.requires_grad for p in reward.model.parameters())


def test_bad_pictures_are_refused_before_they_are_scored(weights, images):
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        scorer(HPSv21, weights)(images * 2 - 1, TEXTS, [{}] * 4)


def test_a_pickle_of_tensors_loads_and_one_with_code_does_not_run(state, copy, images, capfd):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    close(scorer(HPSv21, copy)(images, TEXTS, [{}] * 4), cosines(state, pad(images, 28), TEXTS))

    class Code:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"logit_scale": Code()}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="do not load as CLIPModel: UnpicklingError") as caught:
        scorer(HPSv21, copy).load()
    assert "\n" not in str(caught.value) and "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_projection.weight"), "lack visual_projection.weight"),
        (lambda w: w.update({"bigger.weight": torch.ones(2), "big.weight": torch.ones(2)}), "unexpected big.weight"),
        (lambda w: w.update({"text_projection.weight": torch.ones(2, 2)}), "another shape of text_projection.weight"),
    ],
)
def test_no_weight_is_left_random(copy, change, message, capfd):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        scorer(ClipScore, copy).load()
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (HPSv21(), r"hpsv2.1: .*rewards convert hpsv2.1 CHECKPOINT`, or set scorers: \{hpsv2.1: \{weights: PATH\}\}"),
        (Aesthetic(), "aesthetic: .*rewards convert aesthetic CHECKPOINT"),
        (PickScore(weights="nobody/nothing"), r"not downloaded .*set scorers: \{pickscore: \{weights: PATH\}\}"),
        (ClipScore(weights="somewhere"), "clip: no such directory somewhere"),
    ],
)
def test_missing_weights_say_how_to_get_them(reward, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        reward.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        ("model.safetensors", ["model*.safetensors"]),
        ("pytorch_model.bin", ["model*.safetensors", "pytorch_model*.bin"]),
    ],
)
def test_pickles_are_fetched_only_where_there_are_no_safetensors(there, fetched, tmp_path, monkeypatch):
    asked = []

    def download(repository, allow_patterns):
        asked.append(allow_patterns[-1])
        if fnmatch(there, allow_patterns[-1]):
            (tmp_path / there).touch()
        return str(tmp_path)

    monkeypatch.setattr(files, "snapshot_download", download)
    assert files.find_weights("pickscore", "somebody/something") == tmp_path and asked == fetched


def test_missing_files_of_a_directory(copy):
    for file in copy.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match=rf"no CLIPTokenizer of 54 tokens at {copy} \(found 2\)"):
        scorer(HPSv21, copy).load()
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors"):
        scorer(HPSv21, copy).load()


def fake(table):
    """A scorer with these values, [prompt][picture]; it tells the pictures apart by their brightness."""

    def reward(images, prompts, metadata):
        bright = images.mean((1, 2, 3))
        return [table[PROMPTS.index(p)][int(b != bright[0])] for p, b in zip(prompts, bright, strict=True)]

    return reward


@pytest.mark.parametrize(
    ("name", "table", "fault"),
    [
        ("hpsv2.1", [[0.3, 0.2], [0.2, 0.3]], None),
        ("hpsv2.1", [[0.3, 0.2], [0.3, 0.3]], "picture 1 fits the other prompt"),
        ("hpsv2.1", [[30, 20], [20, 30]], "out of range"),
        ("aesthetic", [[5, 4], [5, 4]], None),
        ("mine.py:f", [[300, 4], [500, 4]], None),
        ("mine.py:f", [[1, 1], [1, 1]], "all scores are equal"),
        ("mine.py:f", [[1, 2], [float("nan"), 1]], "returned nan"),
    ],
)
def test_check_judges_the_numbers(name, table, fault):
    report = check(Scorer(name, fake(table)))
    assert report.passed is (fault is None) and any(fault in found for found in report.faults) is not report.passed
    assert any(line.startswith(PROMPTS[1]) and f"{table[1][1]:.4f}" in line for line in report.lines)
