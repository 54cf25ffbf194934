import json

import pytest
import torch
from checkpoints import bert_tokenizer, clip_tokenizer, head_state, imagereward_state, open_clip_state
from safetensors.torch import load_file, save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.learned import convert as module
from neighbor_grpo.rewards.learned.convert import convert

STATES = {"hpsv2.1": open_clip_state, "imagereward": imagereward_state, "aesthetic": head_state}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    home = tmp_path_factory.mktemp("words")
    clip, bert = clip_tokenizer(home / "clip"), bert_tokenizer(home / "bert")
    return {"hpsv2.1": str(clip), "imagereward": str(bert), "aesthetic": None}


def save(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize("name", STATES)
def test_every_form_of_the_file_gives_the_same_weights(name, words, tmp_path):
    state = STATES[name]()
    forms = [
        save(state, tmp_path / "a.safetensors"),
        save(state, tmp_path / "b.pt"),
        save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "c.pt"),
    ]
    places = [convert(name, form, tmp_path / f"{form.stem}-out", words[name]) for form in forms]
    first, *rest = (load_file(place / "model.safetensors") for place in places)
    for other in rest:
        assert other.keys() == first.keys() and all(torch.equal(other[key], first[key]) for key in first)
    assert sum(tensor.numel() for tensor in first.values()) == sum(tensor.numel() for tensor in state.values())


def test_sizes_are_read_off_the_shapes(words, tmp_path):
    state = open_clip_state(eye=1280, mind=64, patch=2, patches=9, depths=(1, 2))
    place = convert("hpsv2.1", save(state, tmp_path / "a.pt"), tmp_path / "out", words["hpsv2.1"])
    config = json.loads((place / "config.json").read_text())
    eye, mind = config["vision_config"], config["text_config"]
    assert (eye["num_attention_heads"], eye["image_size"], eye["patch_size"], eye["num_hidden_layers"]) == (16, 6, 2, 1)
    assert (mind["num_attention_heads"], mind["max_position_embeddings"], mind["num_hidden_layers"]) == (1, 16, 2)
    assert (eye["hidden_act"], mind["hidden_act"], config["projection_dim"]) == ("gelu", "gelu", 24)
    with pytest.raises(UserError, match="7 attention heads do not divide a width of 1280: give --vision-heads"):
        convert("hpsv2.1", tmp_path / "a.pt", tmp_path / "other", words["hpsv2.1"], vision_heads=7)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("change", ["unknown", "missing", "shape"])
def test_the_first_wrong_key_is_named(name, change, words, tmp_path):
    state = STATES[name]()
    last = list(state)[-1]
    if change == "unknown":
        state.update({"z.odd": torch.ones(1), "a.odd": torch.ones(1)})
        message = r"unexpected key z\.odd"
    elif change == "missing":
        del state[last]
        message = f"missing key {last}"
    else:
        state[last] = torch.ones(3, 3, 3)
        message = rf"{last} gives the shape \[3, 3, 3\]"
    with pytest.raises(UserError, match=f"not a checkpoint of {name}: {message}" if change != "shape" else message):
        convert(name, save(state, tmp_path / "a.pt"), tmp_path / "out", words[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_a_file_of_another_scorer(words, tmp_path):
    with pytest.raises(UserError, match=r"not a checkpoint of imagereward: missing key blip\.visual_encoder\.patch_embed"):
        convert("imagereward", save(head_state(), tmp_path / "a.pt"), tmp_path / "out", words["imagereward"])
    with pytest.raises(UserError, match=r"convert a checkpoint of 'clip': choose hpsv2\.1, imagereward, aesthetic"):
        convert("clip", tmp_path / "a.pt", tmp_path / "out")


class Code:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "args": Code()}, r"would run code \(print\)"),
        ({"epoch": 3}, "epoch is not a tensor"),
        ([torch.ones(1)], "tensors by name"),
        (b"no pickle at all", "cannot be read"),
        (b"", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, message, tmp_path, capfd):
    file = tmp_path / "a.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=message) as caught:
        convert("aesthetic", file, tmp_path / "out")
    assert "\n" not in str(caught.value) and "ran" not in capfd.readouterr().out and not (tmp_path / "out").exists()


def test_a_broken_safetensors_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"broken" * 9)
    with pytest.raises(UserError, match=r"cannot be read .SafetensorError"):
        convert("aesthetic", tmp_path / "a.safetensors", tmp_path / "out")


@pytest.mark.parametrize("name", ["hpsv2.1", "imagereward"])
def test_a_tokenizer_that_is_not_there_or_does_not_fit(name, words, tmp_path):
    source = save(STATES[name](), tmp_path / "a.pt")
    (tmp_path / "empty").mkdir()
    other = words["imagereward" if name == "hpsv2.1" else "hpsv2.1"]
    for tokenizer in (None, "nobody/nothing", str(tmp_path / "none"), str(tmp_path / "empty"), other):
        with pytest.raises(UserError, match="give another with --tokenizer PATH"):
            convert(name, source, tmp_path / "out", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "empty"]


def test_an_output_is_written_whole_or_not_at_all_and_never_over_another(tmp_path, monkeypatch):
    source, out = save(head_state(), tmp_path / "a.pt"), tmp_path / "deep" / "out"

    def full(*given, **settings):
        given[1].write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(module, "save_file", full)
        convert("aesthetic", source, out)
    assert list(out.parent.iterdir()) == []
    out.mkdir()  # empty: may be used
    assert convert("aesthetic", source, out) == out
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is not empty: choose another --out"):
        convert("aesthetic", save(head_state(seed=1), source), out)
    assert (out / "model.safetensors").read_bytes() == before


def test_the_default_place_is_where_the_scorer_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert convert("aesthetic", save(head_state(), tmp_path / "a.pt")) == tmp_path / ".cache/neighbor-grpo/scorers/aesthetic"
