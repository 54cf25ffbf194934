import pytest
import torch

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.streams import generator
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.training.schedule import scheduled

PROMPTS = ["a red circle", "two blue stars", "a green square above a red star", "a yellow star"]


def test_generators_depend_on_their_key_alone():
    draws = [torch.randn(3, generator=generator(*key)) for key in ((1, 2), (1, 2), (2, 1), (1, 2, 0))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_prompts_of_text_and_json_lines(tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("one\n\n two \n")
    lines.write_text('{"prompt": "one", "tag": "count"}\n{"prompt": "zwei ü"}\n', encoding="utf-8")
    assert [p.text for p in read_prompts(str(text))] == ["one", "two"]
    assert [(p.text, p.metadata) for p in read_prompts(str(lines))] == [("one", {"tag": "count"}), ("zwei ü", {})]


@pytest.mark.parametrize("line", ["{bad", '{"text": "no prompt"}', "[1]", '{"prompt": 3}', '{"prompt": " "}'])
def test_bad_json_is_named_by_its_line(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_prompts(str(file))


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match="empty"):
        read_prompts(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="no prompt file"):
        read_prompts(str(tmp_path / "b.txt"))


def test_schedule_visits_every_prompt_once_an_epoch():
    rows = [scheduled(prompts=10, per_iteration=4, iteration=n, seed=0) for n in range(5)]
    flat = [index for row in rows for index in row]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert [scheduled(10, 4, n, 1) for n in range(5)] != rows


def asked(texts):
    return [Prompt(text) for text in texts]


@pytest.fixture
def counted(tiny_flux):
    """A model that lists what it is asked to encode."""
    model = load_model(tiny_flux)
    model.asked, encode = [], model.encode
    model.encode = lambda prompts, images=(): (model.asked.extend(prompts), encode(prompts, images))[1]
    return model


def test_cached_conditioning_is_the_encoders_own_and_gives_the_same_velocity(counted, tmp_path):
    cache = TextCache(counted, tmp_path, 1.0)
    wanted = [PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    first, second, direct = cache.encode(asked(wanted)), cache.encode(asked(wanted)), counted.encode(wanted)
    assert counted.asked == [PROMPTS[1], PROMPTS[0], *wanted]
    x = counted.noise(3, generator(0))
    for cond in (first, second):
        torch.testing.assert_close(counted.velocity(x, 0.5, cond), counted.velocity(x, 0.5, direct), atol=1e-6, rtol=1e-6)


def test_coming_prompts_are_encoded_ahead_once(counted, tmp_path):
    cache = TextCache(counted, tmp_path, 1.0)
    cache.encode(asked(PROMPTS[:1]), coming=asked(PROMPTS))
    assert sorted(counted.asked) == sorted(PROMPTS)
    cache.encode(asked(PROMPTS))
    TextCache(counted, tmp_path, 1.0).encode(asked(PROMPTS))
    assert len(counted.asked) == len(PROMPTS)


def test_the_disk_budget_holds_and_what_was_dropped_is_encoded_again(counted, tmp_path):
    one = sum(t[0].nbytes for t in counted.encode(PROMPTS[:1])) + 400  # file header
    budget = 2.5 * one
    cache = TextCache(counted, tmp_path, budget / 2**30)
    for _ in range(2):
        for prompt in PROMPTS:
            cond, direct = cache.encode(asked([prompt])), counted.encode([prompt])
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(cond, direct, strict=True))
            assert sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors")) <= budget
    assert counted.asked.count(PROMPTS[0]) > 3


@pytest.mark.parametrize(
    ("name", "prompts", "first"),
    [
        ("hpdv2", 400, "Dwayne the Rock Johnson wrestles"),
        ("drawbench", 1000, "New York Skyline"),
        ("geneval", 2212, "a photo of two wine"),
    ],
)
def test_the_fields_prompt_sets_come_with_the_package(name, prompts, first):
    found = read_prompts(name)
    assert len(found) == prompts and found[0].text.startswith(first)
    if name == "geneval":
        assert {prompt.metadata["tag"] for prompt in found} == {
            "single_object",
            "two_object",
            "counting",
            "colors",
            "position",
            "color_attr",
        }
        assert all(clause["count"] >= 1 and clause["class"] for prompt in found for clause in prompt.metadata["include"])
