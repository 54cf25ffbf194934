"""Prompt files of every format: read as what they are, or refused in one line."""

import io
import json
import sys
from importlib.util import find_spec

import pytest
from mutations import is_one_line
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.prompts.reading import Choice, read_prompts

READ = {
    "texts.json": (b'["a cat, red",\n"two dogs"]', ["a cat, red", "two dogs"], {}),
    "objects.json": (b'[{"id": 1, "caption": "a cat"}]', ["a cat"], {"id": 1}),
    "UPPER.JSONL": (b'{"prompt": "a cat", "text": "a sign"}\n', ["a cat"], {"text": "a sign"}),
    "texts.jsonl": (b'"a cat"\n"two dogs"\n', ["a cat", "two dogs"], {}),
    "line.json": ('["a\u2028cat"]'.encode(), ["a\u2028cat"], {}),
    "bom.json": ('\ufeff["a cat"]'.encode(), ["a cat"], {}),
    "null.jsonl": (b'{"prompt": "a cat", "image": null}\n', ["a cat"], {}),
    "a.csv": (
        b'Prompts,Kind\r\n"A cat, on grass",c\r\n"a ""red"" dog",d\r\n',
        ["A cat, on grass", 'a "red" dog'],
        {"Kind": "c"},
    ),
    "space.csv": (b'kind, prompt\nc, "a cat, red"\n', ["a cat, red"], {"kind": "c"}),
    "lines.csv": (b'text\n"a cat\non grass"\n', ["a cat\non grass"], {}),
    "a.TSV": (b"Prompt\tNote\na cat, red\t\n", ["a cat, red"], {"Note": ""}),
    "hash.txt": (b"#1 of all cats\n{red|blue} cat\n[cat]\n", ["#1 of all cats", "{red|blue} cat", "[cat]"], {}),
}


@pytest.mark.parametrize("name", READ)
def test_each_format_is_read_as_what_it_is(name, tmp_path):
    data, texts, metadata = READ[name]
    (tmp_path / name).write_bytes(data)
    found = read_prompts(str(tmp_path / name))
    assert [prompt.text for prompt in found] == texts and found[0].metadata == metadata


REFUSED = [
    ("lines.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "JSON lines are a .jsonl file"),
    ("keys.json", b'{"prompts": ["a"]}', "one JSON array"),
    ("empty.json", b"[]", "is empty"),
    ("array.jsonl", b'[{"prompt": "a"}]', "array .json"),
    ("mixed.json", b'["a", {"prompt": "b"}]', "item 2 is not a text"),
    ("numbers.json", b"[1, 2]", "item 1 is not"),
    ("two.jsonl", b'{"text": "a", "caption": "b"}\n', "'text' and 'caption'.*prompts.key"),
    ("none.jsonl", b'{"subject": "a"}\n', "subject.*prompts.key"),
    ("lines.txt", b'{"prompt": "a"}\n{"prompt": "b"}\n', "name it .jsonl"),
    ("array.txt", b'[\n"a",\n"b"\n]\n', ".json if it is one array"),
    ("comment.txt", b"a cat\n# cats\n", "line 2 begins with #"),
    ("numbered.txt", b"0\ta cat\n1\ta dog\n", "name a table .tsv"),
    ("nohead.csv", b'"a cat, red",c\na dog,d\n', "prompts.key"),
    ("semicolon.csv", b"prompt;kind\na cat;c\n", "prompt;kind.*prompts.key"),
    ("unquoted.csv", b"prompt\na cat, red\n", "line 2 has 2 fields.*double quotes"),
    ("open.csv", b'prompt\n"a cat\n', "double quotes"),
    ("quotes.tsv", b'prompt\tkind\n"Cat" on a wall\tc\n', "double quotes"),
    ("twice.csv", b"prompt,a,a\nx,1,2\n", "two columns 'a'"),
    ("cell.csv", b"prompt,kind\n,c\n", "line 2: 'prompt' must be"),
    ("head.csv", b"prompt\n", "is empty"),
    ("a.xlsx", b"PK", "ends in '.xlsx'.*convert"),
    ("a.jsonl.gz", b"\x1f\x8b", "ends in '.gz'"),
    ("prompts", b"a cat\n", "has no suffix"),
    ("utf32.txt", "a cat".encode("utf-32"), "iconv -f UTF-32"),
    ("utf16.csv", "prompt\na cat".encode("utf-16"), "iconv -f UTF-16"),
    ("cp1252.tsv", "prompt\ncafé".encode("cp1252"), "line 2 is not UTF-8.*CP1252"),
]


@pytest.mark.parametrize(("name", "data", "remedy"), REFUSED)
def test_what_it_is_not_is_refused_with_the_remedy(name, data, remedy, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=remedy) as error:
        read_prompts(str(tmp_path / name))
    assert is_one_line(error.value) and name in str(error.value)


def test_the_column_of_the_texts_and_those_that_are_kept_are_chosen(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("prompt,caption,n\na,b,1\n")
    (chosen,) = read_prompts(str(file), choice=Choice(key="caption", metadata=["n"]))
    assert (chosen.text, chosen.metadata) == ("b", {"n": "1"})
    for choice, said in (
        (Choice(key="x"), "prompts.key"),
        (Choice(metadata=["x"]), "prompts.metadata"),
        (Choice(split="x"), "splits"),
    ):
        with pytest.raises(UserError, match=said):
            read_prompts(str(file), choice=choice)
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(UserError, match="without columns"):
        read_prompts(str(tmp_path / "a.txt"), choice=Choice(key="prompt"))


def test_commands_take_the_same_choices(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("prompt,caption\na,b\n")
    for arguments in (
        ["plan", f"prompts.path={tmp_path}/a.csv", "prompts.key=x"],
        ["plan", f"prompts.eval_path={tmp_path}/a.csv", "prompts.eval_key=x"],
        ["sample", "--prompts", f"{tmp_path}/a.csv", "--prompts-key", "x"],
        ["evaluate", "--prompts", f"{tmp_path}/a.csv", "--prompts-key", "x"],
    ):
        assert main(arguments) == 2 and "'x'" in capsys.readouterr().err
    assert main(["plan", "prompts.eval_key=x"]) == main(["sample", "--prompt", "a", "--prompts-key", "x"]) == 2


def piped(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_the_standard_input_is_read_once_and_is_text(monkeypatch):
    piped(monkeypatch, "a cat\n\ntwo dogs\n")
    assert (
        [prompt.text for prompt in read_prompts("-")] == [prompt.text for prompt in read_prompts("-")] == ["a cat", "two dogs"]
    )
    piped(monkeypatch, '{"prompt": "a"}\n')
    with pytest.raises(UserError, match="jsonl"):
        read_prompts("-")
    monkeypatch.setenv("WORLD_SIZE", "2")
    piped(monkeypatch, "a\n")
    with pytest.raises(UserError, match="several processes"):
        read_prompts("-")


def test_a_run_keeps_prompts_of_the_standard_input_and_resumes_without_it(monkeypatch, tiny_flux, tmp_path, capsys):
    more = [
        text for text in settings(tiny_flux, tmp_path) if not text.startswith(("prompts.path", "prompts.eval_path", "iter"))
    ]
    piped(monkeypatch, "a cat\ntwo dogs\n")
    assert main(["train", *more, "prompts.path=-", "iterations=1"]) == 0
    assert (tmp_path / "run" / "prompts-from-stdin.txt").read_text() == "a cat\ntwo dogs\n"
    (tmp_path / "run").rename(tmp_path / "moved")
    piped(monkeypatch, "")
    assert main(["train", "--resume", str(tmp_path / "moved"), "iterations=2"]) == 0
    assert main(["train", "--resume", str(tmp_path / "moved"), "iterations=3", f"prompts.path={tmp_path}/prompts.txt"]) == 2
    assert "prompts" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"Caption": ["a cat"], "n": [[1, 2]], "picture": [b"\x89PNG"]}), file)
    with pytest.raises(UserError, match=r"'picture' is no JSON.*prompts.metadata"):
        read_prompts(str(file))
    assert read_prompts(str(file), choice=Choice(metadata=["n"]))[0].metadata == {"n": [1, 2]}
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="whole file"):
        read_prompts(str(file))


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")
def test_datasets_of_a_directory(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"text": ["a cat", "two dogs"], "n": [1, 2]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)}).save_to_disk(
        str(tmp_path / "saved")
    )
    with pytest.raises(UserError, match=r"prompts.split.*train, test"):
        read_prompts(str(tmp_path / "saved"))
    assert read_prompts(str(tmp_path / "saved"), choice=Choice(split="test"))[1].metadata == {"n": 2}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in rows["text"]))
    assert [prompt.text for prompt in read_prompts(str(tmp_path / "plain"))] == rows["text"]


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path, extra in ((str(tmp_path / "a.parquet"), "parquet"), ("owner/name", "datasets")):
        with pytest.raises(UserError, match=rf"neighbor-grpo\[{extra}\]"):
            read_prompts(path)
