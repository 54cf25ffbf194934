"""Rewards in files as people write them, and runs whose reward's file does what it should not."""

import pickle
import sys
import textwrap

import pytest
import torch
from runs import metrics, settings

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.names import check_rewards
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import score


def write(file, text):
    file.parent.mkdir(exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


def values(name, own=None):
    scores = score(load_reward(name, own), torch.ones(2, 3, 4, 4), ["a", "b"], [{}] * 2)
    assert not scores.failures, scores.failures
    return scores.values.tolist()


def test_postponed_annotations_and_pickles(tmp_path):
    file = write(
        tmp_path / "mine.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from pydantic.dataclasses import dataclass as checked

        @dataclass
        class Weights:
            w: float = 2.0
            names: list[str] = field(default_factory=list)

        @checked
        class Mine:
            w: float = 3.0
            weights: Weights = field(default_factory=Weights)
            def __call__(self, images, prompts, metadata):
                return images.mean((1, 2, 3)) * self.w * self.weights.w

        mine = Mine(w=0.5)
        """,
    )
    assert values(f"{file}:Mine") == [6.0, 6.0]
    assert values(f"{file}:mine") == [1.0, 1.0]
    changed = load_reward(f"{file}:mine", {f"{file}:mine": {"weights": {"w": 10.0}}})
    assert changed.settings == {"w": 0.5, "weights": {"w": 10.0, "names": []}}  # what is not set stays as in the file
    assert changed.identity["is"] == "mine.Mine"
    assert pickle.loads(pickle.dumps(changed.function)) == changed.function


def test_modules_beside_the_file_also_late_and_with_equal_names(tmp_path):
    for n in (1, 2):
        write(tmp_path / f"{n}" / "helper_of_mine.py", f"WORTH = {n}.0")
        write(tmp_path / f"{n}" / "package_of_mine" / "__init__.py", "from . import part")
        write(tmp_path / f"{n}" / "package_of_mine" / "part.py", f"WORTH = {n}.0")
        write(tmp_path / f"{n}" / "json.py", "raise ImportError('in the place of a library')")
        write(
            tmp_path / f"{n}" / "mine.py",
            f"""
            import json, helper_of_mine
            from package_of_mine.part import WORTH
            def f(images, prompts, metadata):
                import late_{n}
                return [helper_of_mine.WORTH + WORTH + late_{n}.WORTH] * len(prompts)
            """,
        )
        write(tmp_path / f"{n}" / f"late_{n}.py", f"WORTH = {n}.0")
    assert [values(f"{tmp_path}/{n}/mine.py:f")[0] for n in (1, 2, 1)] == [3.0, 6.0, 3.0]
    installed = [n for n, entry in enumerate(sys.path) if entry.endswith("site-packages")]
    assert sys.path.index(f"{tmp_path}/1") > max(installed) and sys.path.count(f"{tmp_path}/1") == 1


def test_a_file_is_loaded_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    text = "open('count', 'a').write('x')\ndef a(images, prompts, metadata):\n    return [{}] * len(prompts)\nb = a\n"
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "two.py", text.format(1.0))
    assert values("two.py:a") == values(f"{tmp_path}/two.py:b") == [1.0, 1.0]
    assert (tmp_path / "count").read_text() == "x"
    write(tmp_path / "two.py", text.format(2.0))
    assert values("two.py:a") == [2.0, 2.0]


def test_a_path_from_home_and_one_with_signs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "def f(images, prompts, metadata):\n    return [1] * len(prompts)\n"
    write(tmp_path / "mine.py", text)
    write(tmp_path / "a#b c:d %20" / "é.py", text)
    for name in ("~/mine.py:f", f"{tmp_path}/a#b c:d %20/é.py:f"):
        check_rewards([name], {})
        assert values(name) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
        ("def f(:", "SyntaxError"),
        ("x = '\0'", "null bytes"),
        ("raise ValueError('\\x1b[2J' + 'x' * 100_000)", r"ValueError: \\x1b"),
        ("class f:\n  def __init__(self): raise SystemExit(0)\n  def __call__(self, a, b, c): ...", "SystemExit: 0"),
        ("class f:\n  def load(self): raise SystemExit(0)\n  def __call__(self, a, b, c): ...", "SystemExit: 0"),
        ("class f:\n  def load(self): 1 / 0\n  def __call__(self, a, b, c): ...", "ZeroDivisionError"),
        ("class f:\n  @property\n  def id(self): 1 / 0\n  def __call__(self, a, b, c): ...", "ZeroDivisionError"),
        ("class f:\n  id = 3\n  def __call__(self, a, b, c): ...", "make it a dict"),
        ("class f:\n  prefer = 3\n  def __call__(self, a, b, c): ...", "make it a function"),
        ("class f:\n  counts = 3\n  def __call__(self, a, b, c): ...", "make it a dict"),
        ("def f(a, b, c): ...\nf.groupwise = 'no'", "set True or False"),
        ("def f(images, prompts): ...", "it gets"),
        ("def f(a, b, c, d): ...", "it gets"),
        ("f = {}", "no function f"),
    ],
)
def test_a_file_that_does_what_it_should_not_is_one_line(text, reason, tmp_path):
    file = write(tmp_path / "bad.py", text)
    with pytest.raises(UserError, match=reason) as error:
        load_reward(f"{file}:f")
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()
    assert not [name for name in sys.modules if name.startswith("bad@")] or "def" in text or "f =" in text


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="correct the file"):
        load_reward(f"{tmp_path / 'bad.py'}:f")


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(0)", "return {n: 1.0 for n in range(len(prompts))}", "raise ValueError('\\x1b[2J' * 9999)"]
)
def test_a_run_with_such_a_reward_ends_with_one_line_and_exit_code_2(body, tiny_flux, tmp_path, capsys):
    more = settings(tiny_flux, tmp_path)
    write(tmp_path / "bad.py", f"def f(images, prompts, metadata):\n    {body}\n")
    assert main(["train", *more, f"reward={tmp_path / 'bad.py'}:f"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not score" in error and "resume" in error and error.isprintable() and len(error) < 2100


def test_a_run_with_a_reward_that_spoils_everything_is_the_run_without(tiny_flux, tmp_path):
    text = """
    import os, random, numpy, torch
    def spoil(images, prompts, metadata):
        images.numpy()[:] = 0
        prompts.clear()
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        for seed in (torch.manual_seed, numpy.random.seed, random.seed):
            seed(0)
        return [1.0] * len(images)
    """
    lines = {}
    for name, body in {"clean": "def spoil(i, p, m):\n    return [1.0] * len(i)\n", "spoilt": text}.items():
        (tmp_path / name).mkdir()
        own = settings(tiny_flux, tmp_path / name)
        file = write(tmp_path / name / "spoil.py", body)
        assert main(["train", *own, f"reward={{{file}:spoil: 1.0, {tmp_path / name}/reward.py:brightness: 1.0}}"]) == 0
        lines[name] = [
            {key.replace(name, "-"): value for key, value in line.items() if not key.startswith(("time/", "mfu/"))}
            for line in metrics(tmp_path / name / "run")
        ]
    assert lines["clean"] == lines["spoilt"]


def test_a_function_of_a_module(tmp_path, monkeypatch):
    heavy = tmp_path / "heavy_of_mine"
    write(heavy / "__init__.py", "open('imported', 'a').write('x')\n")
    write(heavy / "part.py", "def f(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    check_rewards(["heavy_of_mine.part:f"], {})
    for name, reason in {
        "heavy_of_mine.parts:f": "PYTHONPATH",
        "of_nobody:f": "PYTHONPATH",
        "heavy_of_mine.part:": "unknown",
    }.items():
        with pytest.raises(UserError, match=reason):
            check_rewards([name], {})
    assert not (tmp_path / "imported").exists()  # nothing is imported to find that out
    assert values("heavy_of_mine.part:f") == [1.0, 1.0] and (tmp_path / "imported").read_text() == "x"
    with pytest.raises(UserError, match="no function g"):
        load_reward("heavy_of_mine.part:g")
