"""Configuration files of any bytes: a run that means what is written, or one line."""

import codecs
import os
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mutations import bytes_of, is_one_line, nested_of, quick

from neighbor_grpo.cli import main
from neighbor_grpo.config import Config, check_names, load_config, preset_file, preset_names, write_values
from neighbor_grpo.config.reading import parse
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS

WHOLE = [Config(method={"name": name}).model_dump(mode="json") for name in METHODS]
SMALL = [
    {
        "method": {"name": "branch_grpo", "splits": [0, 3], "group_size": 4},
        "reward": {"scenes": 1, "clip": 0.5},
        "watch": ["ocr"],
    },
    {"seed": 3, "method": {"sigma": 0.2, "temperature": 2.5}, "reward": "scenes", "model": {"lora": {"targets": ["to_q"]}}},
    {"reward": {"train": {"mine": 1}, "scorers": {"mine": {"url": "http://127.0.0.1:1", "deep": {"a": [1, 2]}}}}, "ema": None},
]
PRESETS = [file.read_bytes() for name in preset_names() if not name.startswith("scenes/") and (file := preset_file(name))]
TEXTS = [
    *(yaml.safe_dump(values).encode() for values in (*SMALL, WHOLE[0], WHOLE[-1])),
    *PRESETS,
    b"base: &b {sigma: 0.2}\nmethod: {<<: *b, p: 1}\n",
    b"method: &m\n  sigma: 3e-1\nevaluate: {every: 0x10, best: 'scenes'}\n# end\n",
]


SHORT = ("preset", "watch")  # keys that stand for others


def means_what_is_written(values: dict, config: Config) -> bool:
    """Whether every value of a file is that of the configuration, with its type."""
    read = config.model_dump(mode="json")

    def same(written, found, key=""):
        if isinstance(written, dict) and isinstance(found, dict) and key != "reward":
            return all(same(value, found[name], name) for name, value in written.items() if name not in SHORT)
        if isinstance(written, list) and isinstance(found, list):
            return len(written) == len(found) and all(map(same, written, found))
        if key in ("run_dir", "path", "eval_path") and str(written).startswith("~"):
            return found == os.path.expanduser(written)
        if isinstance(found, float) and isinstance(written, int):
            written = float(written)
        return key == "reward" or (written == found and isinstance(written, bool) == isinstance(found, bool))

    return same(values, read)


def check(file, data: bytes) -> bool:
    """Load a file of these bytes: return whether it was read."""
    file.write_bytes(data)
    try:
        config = load_config(file)
        check_names(config, prompts=False)
    except UserError as mistake:
        assert is_one_line(mistake), mistake
        return False
    assert means_what_is_written(parse(data.decode("utf-8-sig"), "it") or {}, config)
    file.write_text(write_values(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(file) == config
    return True


def mutated(examples: int):
    """Two properties: of mutated bytes, and of mutated keys."""

    @quick(examples)
    @given(data=bytes_of(TEXTS))
    def of_bytes(directory, data):
        check(directory / "a.yaml", data)

    @quick(examples)
    @given(values=nested_of([*SMALL, *SMALL, *WHOLE]))
    def of_keys(directory, values):
        check(directory / "a.yaml", yaml.safe_dump(values, allow_unicode=True).encode())

    return of_bytes, of_keys


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("configs")
    before = os.getcwd()
    os.chdir(place)  # where no file of the repository is found by a mutated name
    yield place
    os.chdir(before)


@pytest.mark.parametrize("kind", [0, 1])
def test_mutated_files_are_read_as_written_or_refused_in_one_line(directory, kind):
    mutated(150)[kind](directory=directory)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1])
def test_many_mutated_files(directory, kind):
    mutated(1500)[kind](directory=directory)


def test_files_that_are_not_mutated_are_read(directory):
    assert [check(directory / "a.yaml", data) for data in TEXTS[:5]] == [True] * 5
    assert check(directory / "a.yaml", codecs.BOM_UTF8 + TEXTS[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("+.5", 0.5), ("1_000", 1000), ("0x1f", 31), ("0o17", 15), ("-3", -3), ("yes",
        True), ("~", None),
        ("", None), ("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1e", "1e"), ("nan", "nan"),
        ("'1'", "1"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text, value):
    found = parse(text, "it")
    assert found == value and type(found) is type(value)
    assert parse(write_values({"a": value}), "it") == {"a": value}


@quick(50)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12))
def test_text_is_written_so_that_it_is_read_back(text):
    assert parse(write_values({"a": text, "b": [text, {text or "k": text}]}), "it") == {
        "a": text,
        "b": [text, {text or "k": text}],
    }


BOMBS = {
    "deep list": "[" * 60_000,
    "deep keys": "{a: " * 10_000,
    "wide": f"[{'1,' * 30_000}]",
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{f'*{p},' * 9}]\n" for p, c in zip("abcdefgh",
    "bcdefghi", strict=True)),
    "alias in itself": "method: &a [*a]",
    "merge of itself": "method: &a {<<: *a}",
    "megabyte": "seed: " + "9" * 10**6,
    "long number": "seed: " + "9" * 60_000,
    "long key": "a" * 60_000 + ": 1",
    "long tag": f"seed: !<{'a' * 60_000}> 1",
    "anchors": "&a " * 20_000,
    "directives": "%a\n" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_at_once(tmp_path, bomb):
    (tmp_path / "a.yaml").write_text(BOMBS[bomb])
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "a.yaml")
    assert is_one_line(caught.value) and time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("seed: 1\n".encode("utf-16"), "UTF-16.* save it as UTF-8"),
        ("# café\nseed: 1\n".encode("cp1252"), "line 1 is not UTF-8: .*iconv"),
        ("seed: 1\n".encode("utf-16-le"), "NUL"),
        (b"seed: !!int x\n", "tags"),
        (b"seed: !!python/object/apply:os.system [true]\n", "tags"),
        (b"seed: 1\nseed: 2\n", "'seed' stands twice"),
        (b"method: {p: 1, 'p': 1}\n", "'p' stands twice"),
        (b"1: 2\n", "'1' is not text"),
        (b"[a]: 2\n", "is not text"),
        (b"on: 2\n", "'on' is not text"),
        (b"method.sigma: 0.3\n", "write sigma in the section method"),
        (b'run_dir: "a\\0b"\n', "not text"),
        (b'run_dir: "\\ud83d"\n', "not text"),
        (b"preset: 3\n", "name of a preset"),
        (b"- seed\n", "key: value"),
    ],
)
def test_other_encodings_tags_and_keys_are_refused(tmp_path, data, remedy):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(UserError, match=remedy):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "method=3", "method=[1]", "method=null", "method.name=3", "method.name=[1]", "iterations=true",
        "iterations=3.5", "iterations='3'",
        "iterations=1e10", "seed=-1", f"seed={2**63}", f"seed={2**64}", "seed=1e999", "optimizer.lr=.inf",
        "optimizer.lr=.nan",
        "optimizer.lr='1'", "optimizer.lr=true", "ema.decay=.nan", "method.sigma=.nan", "method.sigma=true",
        "method.temperature=.inf",
        "model.lora.targets=[]", "model.lora.targets=['']", "model.lora.alpha=.inf", "model.guidance_scale=.nan",
        "model.compile=1",
        "reward={scenes: 0}", "reward={scenes: .nan}", "reward={scenes: .inf}", "reward={scenes: true}", "reward=3",
        "watch=[3]",
        "model.height=1000000000", "prompts.per_iteration=1000000000", "method.group_size=1000000000",
        "method.num_steps=1000000000",
        "evaluate.prompts=1000000000", "evaluate.seeds=1000000000", "batch.rollout=1000000000000", "run_dir=''",
        "run_dir=3", "=3", ".=3",
        f"{'a.' * 3000}b=1", f"{'a' * 9000}=1", f"iterations={'x' * 9000}", "\x1b[31m=1", "seed=\x1b[31m", "seed=[",
        "model=3", "prompts=[]",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(override):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert is_one_line(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_every_method_is_finite_and_bounded(name):
    method = Config(method={"name": name}).model_dump(mode="json")["method"]
    numbers = [key for key, value in method.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    assert len(numbers) > 4
    for key in numbers:
        wrong = [".inf", ".nan", "true", "'1'", *(["1000000000000000000"] if isinstance(method[key], int) else [])]
        for value in wrong:
            with pytest.raises(UserError):
                load_config(None, [f"method.name={name}", f"method.{key}={value}"])
                pytest.fail(f"{key}={value} was read")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(None, ["run_dir=~/run", "model.path=~/m", "prompts.path=~/p.txt", "prompts.eval_path=~/e.txt"])
    found = [config.run_dir, config.model.path, config.prompts.path, config.prompts.eval_path]
    assert found == [f"{tmp_path}/{name}" for name in ("run", "m", "p.txt", "e.txt")]
    for home in ("~nobody-of-that-name/run", "~"):
        monkeypatch.setenv("HOME", "")
        with pytest.raises(UserError, match="write the whole path"):
            load_config(None, [f"run_dir='{home}'"])


def test_a_command_prints_one_line_and_exits_with_2(tmp_path, capsys):
    for data in (b"\xff\xfe", b"seed: 1\nseed: 2\n", b"seed: [\n", b"!!int x", b"\x00", b"method: 3\n"):
        (tmp_path / "a.yaml").write_bytes(data)
        assert main(["train", str(tmp_path / "a.yaml")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("neighbor-grpo: ") and err.count("\n") == 1
    (tmp_path / "b.yaml").mkdir()
    assert main(["plan", str(tmp_path / "b.yaml")]) == 2
