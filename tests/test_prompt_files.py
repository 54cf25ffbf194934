"""Prompt files of any bytes: the prompts that are written, or one line."""

import json

import pytest
from hypothesis import given
from mutations import PIECES, bytes_of, is_one_line, quick

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.prompts.prompt import prompt_hash
from neighbor_grpo.prompts.reading import LONGEST, read_prompts

LINES = [
    b'{"prompt": "a red circle", "tag": "count", "include": [{"class": "cat", "count": 2}]}\n{"prompt": "zwei \\u00fc"}\n',
    '{"prompt": "a café\u2028on a hill \\ud83d\\ude00", "n": 1e3}\n\n{"prompt": "b", "image": "a.png"}\r\n'.encode(),
]
TEXTS = [b"a red circle\n\n two blue stars \n", "ein Bär\r\nzwei\u2028drei\n".encode()]
JSON = [
    b'"prompt"',
    b'"images"',
    b"null",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"\\u0000",
    b"\\ud83d",
]


def check(file, data: bytes) -> None:
    """Read a file of these bytes: its prompts can be written and hashed, or it is refused in one line."""
    file.write_bytes(data)
    try:
        prompts = read_prompts(str(file))
    except UserError as mistake:
        assert is_one_line(mistake), mistake
        return
    assert prompts and all(prompt.text.strip() and "\n" not in json.dumps(prompt.metadata) for prompt in prompts)
    assert len(prompt_hash(prompts)) == 64
    if file.suffix == ".txt":
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert [prompt.text for prompt in prompts] == [line.strip() for line in lines if line.strip()]
    again = file.with_name("again.jsonl")
    again.write_text("".join(json.dumps({"prompt": p.text, **p.metadata}) + "\n" for p in prompts))
    assert read_prompts(str(again)) == prompts


def mutated(examples: int):
    """Two properties: of files of texts, and of files of JSON."""

    @quick(examples)
    @given(data=bytes_of(TEXTS))
    def of_texts(directory, data):
        check(directory / "a.txt", data)

    @quick(examples)
    @given(data=bytes_of(LINES, [*PIECES, *JSON, *JSON]))
    def of_json(directory, data):
        check(directory / "a.jsonl", data)

    return of_texts, of_json


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("prompts")
    (place / "a.png").write_bytes(b"")
    return place


@pytest.mark.parametrize("kind", [0, 1])
def test_mutated_files_are_read_as_written_or_refused_in_one_line(directory, kind):
    mutated(200)[kind](directory=directory)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1])
def test_many_mutated_files(directory, kind):
    mutated(2000)[kind](directory=directory)


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("bom.txt", "\ufeffa red circle\na blue star\n".encode(), ["a red circle", "a blue star"]),
        ("bom.jsonl", '\ufeff{"prompt": "a red circle"}\n'.encode(), ["a red circle"]),
        ("mac.txt", b"a\rb\r", ["a", "b"]),
        ("lines.jsonl", '{"prompt": "a\u2028b\x85c\u2029d"}\n'.encode(), ["a\u2028b\x85c\u2029d"]),
        ("escaped.jsonl", b'{"prompt": "a\\u000bb\\n c"}\n', ["a\x0bb\n c"]),
        ("lines.txt", "a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
        ("pair.jsonl", b'{"prompt": "\\ud83d\\ude00"}\n', ["\U0001f600"]),
    ],
)
def test_only_the_end_of_a_line_divides_prompts(tmp_path, name, data, wanted):
    (tmp_path / name).write_bytes(data)
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name))] == wanted


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("a.txt", "a red circle\n".encode("utf-16"), "iconv -f UTF-16"),
        ("a.txt", "a red circle\n".encode("utf-16-le"), "NUL"),
        ("a.txt", "one\na café\n".encode("cp1252"), "line 2 is not UTF-8.*iconv -f CP1252"),
        ("a.txt", b"a" * (LONGEST + 1), "one prompt a line"),
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b'{"prompt": "a \\ud83d"}\n', "half a character"),
        ("a.jsonl", b'{"prompt": "a", "tag": "\\udc00"}\n', "half a character"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "'prompt' twice"),
        ("a.jsonl", b'{"prompt": "a", "x": {"k": 1, "k": 2}}\n', "'k' twice"),
        ("a.jsonl", b'{"prompt": "a", "x": NaN}\n', "JSON object"),
        ("a.jsonl", b'{"prompt": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}\n", "levels|JSON object"),
        ("a.jsonl", b'{"prompt": "a\\u0000"}\n', "prompt"),
        ("a.jsonl", b'{"prompt": "a", "image": "a\\u0000"}\n', "no picture"),
        ("a.jsonl", b'{"prompt": "a", "image": "' + b"x" * 5000 + b'"}\n', "no picture"),
    ],
)
def test_what_is_not_a_prompt_is_refused_with_its_place(tmp_path, name, data, remedy):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=remedy) as caught:
        read_prompts(str(tmp_path / name))
    assert is_one_line(caught.value)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~nobody-of-that-name/a.txt", "/", ""])
def test_names_that_no_file_has(path):
    with pytest.raises(UserError):
        read_prompts(path)


def test_a_plan_reads_the_prompt_file(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"subject": "no prompt"}\n')
    for key in ("prompts.path", "prompts.eval_path"):
        for file in ("missing.txt", "a.jsonl"):
            assert main(["plan", f"{key}={tmp_path / file}"]) == 2
            assert file in capsys.readouterr().err


def test_a_presets_own_prompt_file_may_be_written_later(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["model.path=scenes", "model.height=64", "model.width=64", "model.max_sequence_length=24"]
    assert main(["plan", "--preset", "flux_schnell", *model, "--memory", "80", "--tflops", "100"]) == 0
    assert "give prompts.path=FILE" in capsys.readouterr().out
    assert main(["plan", "--preset", "flux_schnell", "prompts.path=missing.txt"]) == 2
    assert "missing.txt" in capsys.readouterr().err
    assert main(["train", "--preset", "flux_schnell"]) == 2
    assert "no prompt file 'prompts.txt'" in capsys.readouterr().err
