"""Mutations of files: of their bytes, and of what they say."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from neighbor_grpo.errors import UserError

PIECES = [
    b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"\xe9", b"\x85", b"\xe2\x80\xa8", b"\x1b[31m",
    b"\n", b"\r", b"\t",
    b" ", b":", b": ", b"- ", b"? ", b"#", b"'", b'"', b"[", b"]", b"{", b"}", b",", b"&a ", b"*a", b"<<: ", b"!!int ",
    b"!x ", b"|", b">",
    b"%", b"@", b"`", b"---\n", b"...\n", b"~", b"null", b"true", b"yes", b"0", b"-", b"1e999", b".nan", b"-.inf",
    b"1e-4", b"010", b"1:30",
    b"9" * 30, b"0x10", b"\\ud83d", b"\\u0000", b"\\n", b"method", b"preset: demo\n", b"name: ", b"[" * 200,
    b"{a: " * 100, b"x" * 3000,
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 0.0, -0.5, 0.5, 1e-300, 1e308, 2**31, 2**63 - 1, 2**63, 2**64, 10**9, 10**30,
    float("nan"),
    float("inf"), "", "x", "~", "~nobody-of-that-name/x", "1", "1e-4", "true", "null", "010", "1:30", "a b", "a: b",
    "é", "\u2028", "\x00",
    "\x1b[0m", "x" * 5000, "neighbor", "dance_grpo", "scenes", "no.py:f", "/dev/null", "/", ".", [], [None], [1],
    ["x"], [[1]], [True],
    [0, 3], {}, {"a": 1}, {"name": "mix_grpo"}, {"name": 3}, {"scenes": 1}, {"scenes": True}, {"scenes": 0}, {1: 2},
    {None: 1}, {"a": {"b": []}},
]  # fmt: skip


def quick(examples: int) -> settings:
    """Settings of hypothesis: the same examples at every run."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@st.composite
def bytes_of(draw, originals: list[bytes], pieces: list[bytes] = PIECES) -> bytes:
    """Some original with a few places cut out, filled in, repeated or moved."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + draw(st.sampled_from([0, 1, 5, 40, 10**6])))))
        new = draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=4), st.just(data[start:end] * 2), st.just(b"")))
        data = data[:start] + new + data[end:]
    return data


def places(nested: object, place: tuple = ()) -> list[tuple]:
    """Every place in nested keys and lists."""
    inner = nested.items() if isinstance(nested, dict) else enumerate(nested) if isinstance(nested, list) else ()
    return [place] * bool(place) + [found for key, value in inner for found in places(value, (*place, key))]


@st.composite
def nested_of(draw, originals: list[dict], values: list = VALUES) -> dict:
    """Some original with a few values replaced, keys removed or added."""
    nested = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 2))):
        found = places(nested)
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        section = nested
        for key in path:
            section = section[key]
        value, kind = (
            copy.deepcopy(draw(st.sampled_from(values))),
            draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"])),
        )
        if kind == "remove" or (kind == "rename" and isinstance(section, dict)):
            old = section.pop(last)
            if kind == "rename":
                section[draw(st.sampled_from([f"{last}x", "name", 1, True, None, "x" * 300]))] = old
        elif kind == "add" and isinstance(section, dict):
            section[draw(st.sampled_from(["seed", "name", "x", "train", "rank"]))] = value
        else:
            section[last] = value
    return nested


def is_one_line(mistake: UserError) -> bool:
    """Whether a mistake is short and can be shown on every terminal."""
    return 0 < len(str(mistake)) < 1500 and all(character.isprintable() for character in str(mistake))
