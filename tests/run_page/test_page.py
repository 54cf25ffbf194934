"""The page of a run: what it says, what it holds, and that it needs no torch."""

import base64
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from made_runs import PROMPTS, add_group, add_samples, line, make_run
from PIL import Image

from neighbor_grpo.commands.main import main
from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.run import files, report
from neighbor_grpo.run.pages import data_urls
from neighbor_grpo.run.view import again, read_view

HACKED = [line(n, n % 5 == 0) for n in range(11)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run with all parts, whose diversity falls."""
    run = make_run(tmp_path_factory.mktemp("page") / "mine", HACKED, "optimizer.lr=3e-4", "reward.watch=[diversity, sharpness]")
    add_samples(run, 0, "gray"), add_samples(run, 5, "navy"), add_samples(run, 10, "maroon")
    (
        add_group(run, 1, [0.1, None, 0.3], [-1.0, 0.0, 2.0]),
        add_group(run, 5, [0.1, 0.2], None),
        add_group(run, 10, [1, 2], [-1, 1]),
    )
    report.write(run)
    return run


def test_the_curves_of_the_page_are_the_numbers_of_the_run(run):
    page = (run / "report.html").read_text()
    drawn = json.loads(re.search(r"Object\.entries\((\{.*\})\)\)", page)[1])
    panels = {panel["title"]: {one["label"]: one for one in panel["lines"]} for panel in drawn["curves"]}
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    training = panels["scenes"]["training"]
    assert dict(zip(training["x"], training["y"], strict=True)) == {
        one["iteration"]: pytest.approx(one["reward/scenes"], rel=1e-5) for one in lines[1:]
    }
    assert panels["diversity"]["evaluation"]["y"] == [0.5, 0.45, 0.4]
    assert [panel["title"] for panel in drawn["run0-against"]] == [
        "change of rewards, in standard deviations", "change of other measures, in per cent"
    ]  # fmt: skip


def test_every_picture_is_there_once_and_whole(run):
    page = (run / "report.html").read_text()
    found = [base64.b64decode(one) for one in re.findall(r'data:image/png;base64,([^"]+)"', page)]
    wanted = [*run.glob("samples/000000/*.png"), *run.glob("samples/000010/*.png")]
    wanted += [*run.glob("groups/000001/*.png"), *run.glob("groups/000010/*.png")]  # the first and the last
    assert sorted(found) == sorted(file.read_bytes() for file in wanted)
    assert (run / "samples" / "before_after.png").is_file()


def test_the_page_says_what_became_of_the_run(run):
    page = (run / "report.html").read_text()
    assert "10 of 10 iterations" in page and "+80.0 %" not in page
    assert re.search(r"<td>scenes</td><td>0\.1</td><td>0\.2</td>\s*<td>\+100\.0 %</td>", page)
    assert "The diversity is 80% of that before training." in page
    assert re.search(r">rollout</th>.*width=\"66\.67%\".*<td>20\.0 s</td><td>67 %</td>", page)
    assert "advantage +2" in page and "scenes no score" in page
    assert "a &lt;b&gt;green&lt;/b&gt; square &amp; more" in page and PROMPTS[2] not in page
    assert "optimizer.lr" in page and "the plan" in page and "run_dir</th>" not in page


def test_a_watched_reward_that_falls_while_the_trained_one_rises_is_said_in_words(tmp_path):
    lines = [line(n, True, **{"eval/other": 1 - n / 20, "eval_spread/other": 0.02}) for n in (0, 5, 10)]
    run = make_run(tmp_path / "run", lines, "reward.watch=[other, diversity]")
    (finding,) = [one for one in read_view(run).findings if one.name == "hacking"]
    assert finding.verdict == "error" and "other went from 1 to 0.5" in finding.text
    report.write(run)
    assert "while the trained reward rose" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "settings",
    (
        ["iterations=7", "optimizer.lr=3e-5", "prompts.key='123'", "reward.watch=[diversity]", "evaluate.every=2"],
        [
            "method=flow_grpo",
            "method.num_steps=6",
            "ema=null",
            "reward={scenes: 0.5, sharpness: 1}",
            "trackers.use=[tensorboard]",
        ],
        ["model.lora=null", "prompts.path='a file: with # signs.txt'", "reward.scorers={scenes: {device: cpu}}"],
    ),
)
def test_the_command_gives_the_same_settings_again(settings, monkeypatch):
    settings = [one.replace("method=", "method.name=") for one in settings]
    config = load_config(None, ["run_dir=here", *settings])
    program, command, *keys = shlex.split(again(config))
    assert (program, command) == ("neighbor-grpo", "train") and all("=" in key for key in keys)
    assert load_config(None, ["run_dir=here", *keys]) == config


def test_many_pictures_are_compressed_to_the_size_of_a_page(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    pictures = sorted(tmp_path.glob("*.png"))
    found, compressed = data_urls(pictures, 40_000)
    assert compressed == 4 and sum(map(len, found.values())) < 40_000 * 4 / 3 + 200
    assert found[tmp_path / "small.png"].startswith("data:image/png") and found[pictures[0]].startswith("data:image/webp")
    assert data_urls(pictures)[1] == 0


def test_a_run_without_pictures_or_evaluations_has_a_page(tmp_path):
    run = make_run(tmp_path / "bare", [line(1), line(2)], ended="diverged")
    page = report.write(run).read_text()
    assert "the loss or the gradient was not finite" in page and "Before and after" not in page and "Groups" not in page
    empty = make_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="--resume"):
        report.write(empty)
    assert not (empty / "report.html").exists()


def test_damaged_pictures_are_left_out(run, tmp_path):
    other = make_run(tmp_path / "other", HACKED)
    add_samples(other, 0, "gray"), add_samples(other, 5, "navy"), add_samples(other, 10, "maroon")
    (other / "samples" / "000010" / "01-0.png").write_bytes(b"")
    assert read_view(other).between == ["before", "after 5 iterations"]


def test_pages_and_watching_need_no_torch(run):
    code = (
        "import sys; from pathlib import Path; from neighbor_grpo.commands.main import main\n"
        f"assert main(['report', {str(run)!r}]) == 0\n"
        "from neighbor_grpo.run.watch import Watch\n"
        f"assert Watch([Path({str(run)!r})]).look()[0]['kind'] == 'page'\n"
        "from neighbor_grpo.run import serving\n"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys(), 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_of_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert files.read_metrics(tmp_path) == []
