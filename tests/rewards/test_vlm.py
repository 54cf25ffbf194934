"""Scores by a vision-language model: which replies are scores, what is sent, and what wrong replies and servers cause."""

import base64
import hashlib
import json
import time
from itertools import chain, cycle, repeat

import pytest
from faulty import KINDS, Faulty
from test_remote import fixed, free_port  # noqa: F401, the fixture
from test_server import pictures

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import vlm
from neighbor_grpo.rewards.http.protocol import png
from neighbor_grpo.rewards.http.server import describe
from neighbor_grpo.rewards.http.vlm import TEMPLATE, UnifiedReward, parse, read_reply
from neighbor_grpo.rewards.scorer import make_scorer

THREE = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 5"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (THREE, 4),
        (THREE.replace("\n", "\r\n"), 4),
        (THREE.replace("\n", ", "), 4),
        (THREE.lower(), 4),
        (THREE + "\n" + THREE, 4),
        ("**Alignment Score (1-5):** 4", 4),
        ("**Alignment Score (1-5)**: 4.5", 4.5),
        ("- *Alignment Score (1-5): **2***", 2),
        ("### Alignment  Score (1-5) : 3", 3),
        ("1. Alignment Score: 1", 1),
        ("Alignment Score (1–5): 5.0", 5),
        ("Alignment Score（1-5）：４", 4),
        ("Alignment Score (1-5): 4/5", 4),
        ("Alignment Score: 3.5 / 5.0", 3.5),
        ("Alignment Score (1-5): 4 out of 5", 4),
        ("Alignment Score (1-5): 4.", 4),
        ("Alignment Score (1-5) = 4", 4),
        ("Alignment Score (1 to 5): 4 (the cat is there)", 4),
        ("Alignment Score (1-5): 4 - good", 4),
        ("The picture shows 3 cats.\n\nAlignment Score (1-5): 2\nIt should be 7.", 2),
    ],
)
def test_replies_that_are_scores(reply, score):
    assert parse(reply, "alignment") == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "4",
        "Alignment Score (1-5):",
        "Alignment Score (1-5): X",
        "Alignment Score (1-5): four",
        "Alignment Score (1-5): N/A",
        "Alignment Score (1-5): 0",
        "Alignment Score (1-5): 5.5",
        "Alignment Score (1-5): -4",
        "Alignment Score (1-5): 44",
        "Alignment Score (1-5): 4/10",
        "Alignment Score (1-5): 4/50",
        "Alignment Score (1-5): 4-5",
        "Alignment Score (1-5): 4 or 5",
        "Alignment Score (1-5): 4,5",
        "Alignment Score (1-5): 4%",
        "Alignment Score (1-5): 1e0",
        "Alignment Score (1-5): 4½",
        "Alignment Score (0-10): 4",
        "Alignment Score (1-5): 3 objects are missing",
        "Alignment Score 4",
        "Style Score (1-5): 4",
        "Alignment Score (1-5): 4\nAlignment Score (1-5): 2",
        "Alignment Score (1-5): inf",
        "I cannot judge this picture.",
        "Alignment Score (1-5): 4.5.1",
        "Alignment Score (1-5): 4 / 5 / 5",
    ],
)
def test_replies_that_are_none(reply):
    with pytest.raises(ValueError, match="alignment score"):
        parse(reply, "alignment")


def test_axes():
    assert [parse(THREE, axis) for axis in ("alignment", "coherence", "style")] == [4, 3.5, 5]
    assert parse(THREE, "mean") == 12.5 / 3
    with pytest.raises(ValueError, match="no style score"):
        parse(THREE.rpartition("\n")[0], "mean")


def completion(text, **choice):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **choice}]}).encode()


def test_a_reply_cut_short_loses_its_last_line():
    assert read_reply(completion(THREE, finish_reason="stop")) == THREE
    assert parse(read_reply(completion(THREE, finish_reason="length")), "alignment") == 4
    with pytest.raises(ValueError, match="no alignment"):
        parse(read_reply(completion("Alignment Score (1-5): 4", finish_reason="length")), "alignment")


def graded(path, body):
    """Scores by the prompt's last character, as a model would answer the default template."""
    assert path == "/v1/chat/completions"
    text = json.loads(body)["messages"][0]["content"][1]["text"]
    mark = text.partition("was:\n\n")[2].partition("\n")[0][-1]
    return completion(f"**Alignment Score (1-5):** {mark}\n**Coherence Score (1-5):** 3\n**Style Score (1-5):** 3.5")


def spoil(kind, right):
    return {
        "nan": right[:-1] + b', "usage": NaN}',
        "garbage": b"{",
        "wrong": b'{"choices": []}',
        "none": completion(None),
    }[kind]


def test_what_is_asked():
    server = Faulty(graded, repeat("ok"), spoil)
    with server.serving() as url:
        reward = UnifiedReward(f"{url}/v1/", "grader", max_tokens=77, axis="mean")
        assert reward(pictures(2), ["a {dog} 4", "b 5"], [{}, {}]) == [10.5 / 3, 11.5 / 3]
    asked = {json.loads(body)["messages"][0]["content"][1]["text"]: json.loads(body) for _, body, _ in server.served}
    first = asked[TEMPLATE.replace("{prompt}", "a {dog} 4")]
    picture = first["messages"][0]["content"][0]
    prefix, _, data = picture["image_url"]["url"].partition(",")
    assert (picture["type"], prefix) == ("image_url", "data:image/png;base64")
    assert base64.b64decode(data) == png(pictures(2)[0])
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("grader", 0, 77)


def test_each_picture_is_right_or_has_a_reason_whatever_the_server_does():
    kinds = ["500", "429", "nan", "garbage", "wrong", "dropped", "truncated", "none"]
    server = Faulty(graded, cycle(chain(*((kind, "ok", "ok") for kind in kinds))), spoil)
    images = pictures(120)
    images[7] += 1
    prompts = [f"{n} 4x"[: -1 if n % 10 else None] for n in range(120)]  # every tenth reply is no score
    with server.serving() as url:
        reward = UnifiedReward(f"{url}/v1", "grader", timeout=5, retries=20, backoff=0.001)
        values = reward(images, prompts, [{}] * 120)
    for n, value in enumerate(values):
        if n == 7:
            assert "[0, 1]" in str(value)
        elif n % 10 == 0:
            assert "no alignment scores: '**Alignment Score (1-5):** x" in str(value) and len(str(value)) < 300
        else:
            assert value == 4.0
    assert reward.counts["unparsable"] == 12
    faults = sum(server.injected.values()) - server.injected["ok"]
    assert sum(reward.counts[kind] for kind in {"malformed", *KINDS.values()}) == faults


def test_a_mistake_in_the_code_is_not_a_picture_without_a_score(monkeypatch):
    server = Faulty(graded, repeat("ok"), spoil)
    with server.serving() as url:
        reward = UnifiedReward(f"{url}/v1", "grader")
        monkeypatch.setattr(vlm, "png", lambda image: None.mistake)
        with pytest.raises(AttributeError):
            reward(pictures(1), ["4"], [{}])


def test_the_key_is_sent_and_never_told(monkeypatch, fixed):  # noqa: F811
    key = "sk-secret-123"
    monkeypatch.setenv("JUDGE_KEY", key + "\n")
    server = Faulty(graded, repeat("ok"), spoil)
    with server.serving() as url:
        reward = UnifiedReward(f"{url}/v1", "grader", api_key_env="JUDGE_KEY")
        reward.load()
        assert reward(pictures(1), ["4"], [{}]) == [4.0]
        UnifiedReward(f"{url}/v1", "grader", api_key_env="NO_SUCH_KEY").load()
    assert [headers.get("authorization") for _, _, headers in server.served] == [f"Bearer {key}"] * 2 + [None]
    refusals = [fixed((401, {}, f"wrong key {key}, {'x' * 170}{key}".encode())), fixed((200, {}, completion(f"no, {key}")))]
    told = [repr(reward), str(reward.id), str(describe(make_scorer("reward", reward)))]
    for url in refusals:
        reward = UnifiedReward(url, "grader", api_key_env="JUDGE_KEY")
        told += [str(value) for value in reward(pictures(1), ["4"], [{}])]
    assert "wrong key ***" in told[-2] and "no, ***" in told[-1]
    with pytest.raises(UserError, match=r"wrong key \*\*\*.*JUDGE_KEY") as error:
        UnifiedReward(refusals[0], "grader", api_key_env="JUDGE_KEY").load()
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\x07-123")
    told += [str(error.value), *map(str, reward(pictures(1), ["4"], [{}]))]
    assert "characters" in told[-1]
    assert "secret" not in " ".join(told)


def test_load_says_what_is_wrong_in_one_line(fixed, tmp_path):  # noqa: F811
    (tmp_path / "none.txt").write_text("no place for it")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    good = fixed((200, {}, completion("")))
    for reason, settings in {
        "needs url": {"model": "m"},
        "id of a model": {"url": good},
        "Connect": {"url": f"http://127.0.0.1:{free_port()}", "model": "m"},
        "HTTP 404": {"url": fixed((404, {}, b"no such\nmodel")), "model": "m"},
        "not a chat completion": {"url": fixed((200, {}, b'{"scores": []}')), "model": "m"},
        "none.txt has no": {"url": good, "model": "m", "template": str(tmp_path / "none.txt")},
        "neither": {"url": good, "model": "m", "template": "x" * 5000},
        "text file": {"url": good, "model": "m", "template": str(tmp_path / "binary")},
    }.items():
        with pytest.raises(UserError, match=reason) as error:
            UnifiedReward(**settings).load()
        assert "\n" not in str(error.value)
    UnifiedReward(good, "m").load()


def test_the_id_tells_the_template_and_no_path(tmp_path):
    (tmp_path / "mine.txt").write_text("Rate: {prompt} / 5\n")
    reward = UnifiedReward("http://x", "grader", template=str(tmp_path / "mine.txt"), axis="style")
    text = "Rate: {prompt} / 5\n"
    expected = {
        "model": "grader",
        "axis": "style",
        "template": text,
        "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    assert reward.id == expected
    assert describe(make_scorer("reward", reward)) == {**expected, "name": "reward"}


@pytest.mark.parametrize("reply", ["Style Score" + " " * 250_000 + "x", "Style " * 40_000, "(,;.!" * 50_000, "a" * 250_000])
def test_no_reply_takes_long_to_read(reply):
    began = time.monotonic()
    with pytest.raises(ValueError, match="no style scores"):
        parse(reply, "style")
    assert time.monotonic() - began < 5
    with pytest.raises(ValueError, match="characters"):
        read_reply(completion(reply * 2))
