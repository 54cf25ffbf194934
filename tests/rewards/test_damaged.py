"""Files of scorers that are damaged, half downloaded or something else: one line that names the place, never a traceback."""

import json
import random
import shutil

import pytest
import torch
from checkpoints import bert_tokenizer, clip_tokenizer, head_state, imagereward_state, open_clip_state
from detectors import detr
from safetensors.torch import load_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.rewards.geneval.detect import ClipColor, Detector, read_detections
from neighbor_grpo.rewards.geneval.scorer import Geneval
from neighbor_grpo.rewards.learned.clip import Aesthetic, HPSv21
from neighbor_grpo.rewards.learned.convert import convert
from neighbor_grpo.rewards.learned.imagereward import ImageReward

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3944692325\n"
DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "pointer": lambda data: POINTER,
    "html": lambda data: b"<!DOCTYPE html><html>\x1b[2J</html>",
    "list": lambda data: b"[1, 2]",
    "object": lambda data: b"{}",
    "binary": lambda data: random.Random(0).randbytes(200),
    "nested": lambda data: b"[" * 100_000,
    "flipped": lambda data: data[:9] + bytes([data[9] ^ 4]) + data[10:],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A directory of each scorer, as `convert` writes it, and of a detector."""
    tmp, torch_save = (
        tmp_path_factory.mktemp("scorers"),
        {"hpsv2.1": open_clip_state, "imagereward": imagereward_state, "aesthetic": head_state},
    )
    words = {"hpsv2.1": clip_tokenizer(tmp / "clip"), "imagereward": bert_tokenizer(tmp / "bert"), "aesthetic": None}
    for name, state in torch_save.items():
        torch.save(dict(state()), tmp / f"{name}.pt")
        convert(name, tmp / f"{name}.pt", tmp / name, words[name] and str(words[name]))
    (tmp / "detector").mkdir()
    detr(tmp / "detector")
    return tmp


def load(kind, place, places):
    """Load the scorer of a directory."""
    made = {
        "hpsv2.1": lambda: HPSv21(weights=str(place), device="cpu").load(),
        "imagereward": lambda: ImageReward(weights=str(place), device="cpu").load(),
        "aesthetic": lambda: Aesthetic(weights=str(place), clip=str(places / "hpsv2.1"), device="cpu").load(),
        "detector": lambda: Detector(str(place)),
        "colors": lambda: ClipColor(str(place)),
    }
    made[kind]()


SOURCES = {
    "hpsv2.1": "hpsv2.1",
    "imagereward": "imagereward",
    "aesthetic": "aesthetic",
    "detector": "detector",
    "colors": "hpsv2.1",
}


@pytest.mark.parametrize(
    ("kind", "manifest"),
    [
        ("hpsv2.1", True),
        ("aesthetic", True),
        ("aesthetic", False),
        ("detector", False),
        pytest.param("hpsv2.1", False, marks=pytest.mark.slow),
        pytest.param("imagereward", False, marks=pytest.mark.slow),
        pytest.param("colors", False, marks=pytest.mark.slow),
    ],
)
def test_every_damage_of_every_file_is_one_line_or_harmless(kind, manifest, places, tmp_path, capfd):
    source, refused = places / SOURCES[kind], 0
    for file in sorted(path.name for path in source.iterdir() if path.name != atomic.MANIFEST):
        for name, damage in DAMAGE.items():
            place = tmp_path / f"{file}-{name}"
            shutil.copytree(source, place)
            if not manifest:
                (place / atomic.MANIFEST).unlink(missing_ok=True)
            (place / file).write_bytes(damage((source / file).read_bytes()))
            try:
                load(kind, place, places)
            except UserError as error:
                refused += 1
                text = str(error)
                assert text.isprintable() and len(text) < 1000 and (str(place) in text or kind == "aesthetic"), text
            else:
                assert not manifest, (file, name)
            shutil.rmtree(place)
    assert refused >= 6
    assert "Traceback" not in capfd.readouterr().err


def test_one_changed_bit_of_a_converted_weight_is_noticed(places, tmp_path):
    shutil.copytree(places / "hpsv2.1", tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors.*rewards convert|model\.safetensors.*set scorers"):
        load("hpsv2.1", tmp_path / "copy", places)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update({"visual.proj": torch.ones(3)}),
        lambda w: w.update({"visual.proj": torch.tensor(3.0)}),
        lambda w: w.update({"token_embedding.weight": torch.ones(3)}),
        lambda w: w.update({"token_embedding.weight": torch.ones(0, 0)}),
        lambda w: w.update({"visual.conv1.weight": torch.tensor(1.0)}),
        lambda w: w.update({"visual.conv1.weight": torch.ones(48, 3, 0, 0)}),
        lambda w: w.update({"visual.positional_embedding": torch.ones(0, 48)}),
        lambda w: w.update({"positional_embedding": torch.tensor(1.0)}),
        lambda w: w.update({"transformer.resblocks.0.attn.in_proj_weight": torch.tensor(1.0)}),
        lambda w: w.update({"transformer.resblocks.0.mlp.c_fc.weight": torch.ones(0, 32)}),
        lambda w: w.update({"text_projection": torch.ones(2, 2, 2)}),
        lambda w: w["visual.proj"].fill_(float("nan")),
        lambda w: w["ln_final.weight"].fill_(float("inf")),
        lambda w: w.update({"ln_final.weight": torch.ones(32, dtype=torch.int64)}),
    ],
)
def test_a_checkpoint_of_odd_shapes_or_numbers_is_one_line(change, places, tmp_path):
    state = dict(open_clip_state())
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError) as error:
        convert("hpsv2.1", tmp_path / "a.pt", tmp_path / "out", str(places / "clip"))
    assert str(error.value).isprintable() and str(tmp_path / "a.pt") in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"\n\n",
        b"[]",
        b"3",
        b"[" * 100_000,
        b'{"detections": 3}',
        b'{"detections": [3]}',
        b'{"detections": [{"label": 3, "score": 1, "box": [0, 0, 1, 1]}]}',
        b'{"detections": [{"label": "a", "score": 1, "box": [0, 0, 1, 1], "color": 3}]}',
        b'{"detections": [{"label": "a", "score": NaN, "box": [0, 0, 1, 1]}]}',
        b'{"detections": [{"label": "a", "score": 1, "box": [0, 0, 1, 1e999]}]}',
        b'{"detections": [{"label": "a", "score": 1, "box": {}}]}',
        b'{"detections": [{"label": "a", "score": 1, "box": [0, 0, 1, 1], "\\u001b[2J": 1}]}',
    ],
)
def test_detections_that_are_not(text, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(text)
    for path in (tmp_path / "a.jsonl", tmp_path, tmp_path / "gone.jsonl"):
        with pytest.raises(UserError, match=r"write|give") as error:
            read_detections(str(path))
        assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize("picture", [-1, 1, 10**30, "a", 0.5, None, [0]])
def test_a_picture_that_no_line_describes_has_no_score(picture, tmp_path):
    row = {"detections": [{"label": "cat", "score": 1, "box": [0, 0, 1, 1]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    metadata = {"tag": "", "include": [{"class": "cat", "count": 1}], "picture": picture}
    scored = Geneval(detections=str(tmp_path / "a.jsonl"))(torch.zeros(1, 3, 8, 8), ["a"], [metadata])
    assert isinstance(scored[0], Exception)


def test_what_convert_writes_is_what_was_read(places):
    ours, theirs = load_file(places / "aesthetic" / "model.safetensors"), head_state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
