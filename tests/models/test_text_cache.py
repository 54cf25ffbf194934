"""The text cache: what is damaged is encoded again, what cannot be written is said, what differs has another key."""

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import quick
from safetensors.torch import load_file, save_file

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.models.fingerprint import fingerprint
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.text_cache import TextCache, cache_directory
from neighbor_grpo.prompts.prompt import Prompt

PROMPTS = [Prompt("a red circle"), Prompt("two blue stars")]


@pytest.fixture(scope="module")
def model(tiny_flux):
    """A model that counts the prompts that it encodes."""
    model = load_model(tiny_flux)
    encode = model.encode

    def counted(texts, images=()):
        model.asked += len(texts)
        return encode(texts, images)

    model.encode = counted
    return model


@pytest.fixture
def cache(model, tmp_path):
    """A cache that holds the two prompts, and what they are."""
    model.asked = 0
    cache = TextCache(model, tmp_path, 1.0)
    cache.true = cache.encode(PROMPTS)
    return cache


def files(cache):
    return sorted(cache.directory.glob("*.safetensors"))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_damaged_is_encoded_again(cache, model):
    for damage in (
        b"",
        b"\x00" * 40,
        files(cache)[0].read_bytes()[:-1],
        files(cache)[1].read_bytes(),
    ):  # the last is another prompt's
        files(cache)[0].write_bytes(damage)
        before = model.asked
        assert equal(cache.encode(PROMPTS), cache.true) and model.asked == before + 1
        assert equal(cache.encode(PROMPTS), cache.true) and model.asked == before + 1
    files(cache)[0].unlink()
    assert equal(cache.encode(PROMPTS), cache.true)
    name = files(cache)[0]
    save_file(load_file(name), name)  # whole, and without a checksum
    before = model.asked
    assert equal(cache.encode(PROMPTS), cache.true) and model.asked == before + 1


@quick(150)
@given(data=st.data())
def flipped(cache, original, data):
    """Flip one bit of a file: its prompt is encoded again."""
    place = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(original) - 1)))
    damaged = bytearray(original)
    damaged[place % len(original)] ^= 1 << data.draw(st.integers(0, 7))
    path = files(cache)[0]
    path.write_bytes(damaged)
    assert cache._load(path.stem) is None


def test_a_flipped_bit_is_noticed(cache):
    flipped(cache, files(cache)[0].read_bytes())
    assert equal(cache.encode(PROMPTS), cache.true)


def test_what_cannot_be_read_or_replaced_is_encoded_each_time(cache, model, capsys):
    path = files(cache)[0]
    path.unlink()
    (path / "inside").mkdir(parents=True)
    before = model.asked
    for n in (1, 2):
        assert equal(cache.encode(PROMPTS), cache.true) and model.asked == before + n
    assert capsys.readouterr().err.count("prompts.cache_dir") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_run_continues_on_a_full_disk_and_says_so(model, tmp_path, monkeypatch, capsys, number):
    def full(tensors, path, metadata=None):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("neighbor_grpo.models.text_cache.save_file", full)
    cache, model.asked = TextCache(model, tmp_path, 1.0), 0
    assert equal(cache.encode(PROMPTS[:1], coming=PROMPTS), model.encode(["a red circle"]))
    assert model.asked == 2  # coming prompts are not encoded for nothing
    assert capsys.readouterr().err.count(os.strerror(number)) == 1
    assert not [*tmp_path.rglob("*.partial")] and not [*tmp_path.rglob("*.safetensors")]
    monkeypatch.undo()
    cache.encode(PROMPTS)
    assert len(files(cache)) == 2  # there is room again


def test_a_directory_that_vanishes_is_made_again(cache):
    shutil.rmtree(cache.directory)
    assert equal(cache.encode(PROMPTS), cache.true) and len(files(cache)) == 2


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(cache, model, tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    dead, alive = (cache.directory / f".x.{atomic._host()}.{pid}.partial" for pid in (gone, os.getppid()))
    dead.write_bytes(b"half"), alive.write_bytes(b"half")
    TextCache(model, tmp_path, 1.0)
    assert not dead.exists() and alive.exists()


def test_two_runs_share_a_directory(model, tmp_path):
    """Each writes and deletes under the other's hands, in a budget of one file."""
    one, other = (TextCache(model, tmp_path, 6000 / 2**30) for _ in range(2))
    true = model.encode([prompt.text for prompt in PROMPTS])
    for _ in range(3):
        for cache in (one, other):
            assert torch.allclose(cache.encode(PROMPTS).text, true.text, atol=1e-6)
    assert len(files(one)) <= 2


@pytest.mark.parametrize("name", ["/proc/none", "{}/file/cache", "~nobody-of-that-name/cache"])
def test_a_directory_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"prompts\.cache_dir: "):
        cache_directory(name.format(tmp_path))


def test_it_is_said_before_weights_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neighbor_grpo.training.parts.load_base", lambda *_: pytest.fail("the model was loaded"))
    assert main(["train", "device=cpu", "prompts.cache_dir=/proc/none", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "prompts.cache_dir" in capsys.readouterr().err


# ---------------------------------------------------------------- its key


def changed(place, file, **keys):
    values = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps(values | keys))


def other_word(place):
    file = place / "tokenizer_2" / "tokenizer.json"
    values = json.loads(file.read_text())
    words = values["model"]["vocab"]
    words[-1][0], words[-2][0] = words[-2][0], words[-1][0]
    file.write_text(json.dumps(values))


def other_weight(place):
    file = place / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights[min(weights)].view(-1)[0] += 1
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        other_word,
        other_weight,
        lambda place: changed(place, "tokenizer/tokenizer_config.json", model_max_length=8),
        lambda place: changed(place, "tokenizer_2/tokenizer_config.json", model_max_length=16),
        lambda place: changed(place, "text_encoder/config.json", hidden_act="gelu"),
        lambda place: changed(place, "text_encoder_2/config.json", layer_norm_epsilon=0.1),
    ],
)
def test_whatever_conditions_the_encoding_changes_the_key(tiny_flux, tmp_path, change):
    place = shutil.copytree(tiny_flux, tmp_path / "other")
    same = fingerprint(load_model(tiny_flux))
    assert fingerprint(load_model(place)) == same  # wherever it lies
    change(place)
    assert fingerprint(load_model(place)) != same


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_the_code_that_encodes_changes_the_key(tiny_flux, monkeypatch, library):
    model = load_model(tiny_flux)
    same = fingerprint(model)
    monkeypatch.setattr("neighbor_grpo.models.fingerprint.version", lambda name: "1" if name == library else version(name))
    assert fingerprint(model) != same


def test_settings_and_templates_of_the_pipeline_change_the_key(place):
    model = load_model(place["t2v"], height=32, width=32, num_frames=5)
    same = fingerprint(model)
    model.pipe.register_to_config(expand_timesteps=True)
    other = fingerprint(model)
    model.pipe.tokenizer.chat_template = "{{ prompt }}"
    assert len({same, other, fingerprint(model)}) == 3


def test_settings_of_the_run_change_the_key_and_others_do_not(tiny_flux):
    same = fingerprint(load_model(tiny_flux))
    assert fingerprint(load_model(tiny_flux, max_sequence_length=12)) != same
    assert fingerprint(load_model(tiny_flux, dtype=torch.bfloat16)) != same
    assert fingerprint(load_model(tiny_flux, height=48, width=32, guidance_scale=2.0)) == same
