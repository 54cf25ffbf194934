"""neighbor-grpo rewards: a published checkpoint becomes a scorer that trains, watches, evaluates, serves and is checked."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from checkpoints import bert_tokenizer, clip_tokenizer, head_state, imagereward_state, open_clip_state
from runs import metrics, settings
from test_cli import mistake, run

from neighbor_grpo.rewards.registry import load_reward


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Directories by name, made by the command from small checkpoints in the published layout."""
    from neighbor_grpo.cli import main

    home = tmp_path_factory.mktemp("scorers")
    words = {"hpsv2.1": clip_tokenizer(home / "clip"), "imagereward": bert_tokenizer(home / "bert"), "aesthetic": None}
    states = {"hpsv2.1": open_clip_state(), "imagereward": imagereward_state(), "aesthetic": head_state()}
    for name, state in states.items():
        torch.save(state, home / "checkpoint.pt")
        tokenizer = ["--tokenizer", str(words[name])] if words[name] else []
        assert main(["rewards", "convert", name, str(home / "checkpoint.pt"), "--out", str(home / name), *tokenizer]) == 0
    return home


def test_a_run_trains_on_one_watches_others_and_is_evaluated_by_them(capsys, tiny_flux, scorers, tmp_path):
    sections = {
        "train": {"hpsv2.1": 1.0, "imagereward": 0.5, "jpeg_compressibility": 0.1},
        "watch": ["aesthetic", "win_rate:hpsv2.1"],
        "scorers": {
            "hpsv2.1": {"weights": str(scorers / "hpsv2.1"), "batch": 3},
            "imagereward": {"weights": str(scorers / "imagereward")},
            "aesthetic": {"weights": str(scorers / "aesthetic"), "clip": str(scorers / "hpsv2.1"), "offload": True},
        },
    }
    branch = "method={name: branch_grpo, group_size: 4, num_steps: 4, splits: [0, 1]}"
    arguments = settings(tiny_flux, tmp_path, f"reward={json.dumps(sections)}", "iterations=2", branch)
    code, _, err = run(capsys, "train", *arguments)
    assert code == 0, err
    lines = metrics(tmp_path / "run")
    for name in sections["train"]:
        assert all(f"reward/{name}" in line and line[f"failed/{name}"] == 0 for line in lines[1:])
    assert all(line["eval/win_rate:hpsv2.1"] == pytest.approx(0.5) for line in (lines[0], lines[-1]))  # of two, one wins
    assert lines[0]["eval/aesthetic"] != lines[0]["eval/hpsv2.1"]

    scorer = ("--scorer", "hpsv2.1", f"weights={scorers / 'hpsv2.1'}", "batch=2")
    out = ("--out", tmp_path / "e", "--prompts", tmp_path / "prompts.txt")
    code, _, err = run(capsys, "evaluate", "--run", tmp_path / "run", "--measure", "hpsv2.1", *scorer, *out)
    assert code == 0, err
    stored = json.loads((tmp_path / "e" / "result.json").read_text())
    assert stored["settings"]["scorers"]["hpsv2.1"]["weights"] == str(scorers / "hpsv2.1")


@pytest.mark.slow
def test_a_served_scorer_is_the_local_one_except_for_rounding(scorers):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "neighbor_grpo.cli",
            "rewards",
            "serve",
            "hpsv2.1",
            "--port",
            "0",
            "--scorer",
            "hpsv2.1",
            f"weights={scorers / 'hpsv2.1'}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[-1]
        far = load_reward("hpsv2.1", {"hpsv2.1": {"url": url}})
        near = load_reward("hpsv2.1", {"hpsv2.1": {"weights": str(scorers / "hpsv2.1")}})
        images = torch.randint(0, 256, (5, 3, 40, 32), generator=torch.Generator().manual_seed(0)) / 255
        asked = (images, [f"prompt {n}" for n in range(5)], [{}] * 5)
        assert torch.tensor(far.function(*asked), dtype=torch.float64).tolist() == pytest.approx(
            near.function(*asked).tolist(), abs=1e-6
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_check_says_what_it_found(capsys, scorers):
    for name in ("scenes", "ocr"):
        code, out, _ = run(capsys, "rewards", "check", name)
        assert code == 0 and "make sense" in out
    err = mistake(capsys, "rewards", "check", "imagereward", "--scorer", "imagereward", f"weights={scorers / 'imagereward'}")
    assert "make no sense" in err  # random weights


def test_mistakes(capsys, tiny_flux, scorers, tmp_path):
    arguments = settings(tiny_flux, tmp_path)
    for changes, message in (
        (("reward=hpsv2.1", "reward.scorers={hpsv2.1: {weights: /x}}"), "no such directory /x"),
        (
            ("watch=[aesthetic]", "reward.scorers={aesthetic: {weigths: /x}}"),
            "aesthetic.weigths: unknown setting: settings are weights",
        ),
        (("reward=jpeg_compressibility", "reward.scorers={hpsv21: {weights: /x}}"), "did you mean hpsv2.1?"),
        (("reward=far", "reward.scorers={far: {url: 'http://127.0.0.1:9'}}"), "no scorer at http://127.0.0.1:9"),
    ):
        assert message in mistake(capsys, "train", *arguments, *changes)
    assert "evaluate.best" in mistake(capsys, "train", *arguments, "evaluate.best=beauty")
    assert not (tmp_path / "run").exists()
    (tmp_path / "x.pt").write_bytes(b"nothing")
    assert "x.pt" in mistake(capsys, "rewards", "convert", "hpsv2.1", tmp_path / "x.pt", "--out", tmp_path / "o")
    assert "unknown reward" in mistake(capsys, "rewards", "check", "beauty")
    assert "unknown reward 'beauty'" in mistake(capsys, "rewards", "serve", "beauty")


def test_geneval_from_a_file_of_detections_over_a_folder(capsys, tmp_path):
    """Two prompts of 20: the lines are matched to pictures by number, whatever portions they are scored in."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    wanted = [n % 3 != 0 for n in range(40)]
    prompts = [{"prompt": f"a dog {n}", "tag": "single_object", "include": [{"class": "dog", "count": 1}]} for n in range(20)]
    found = [[{"label": "dog", "score": 0.9, "box": [0, 0, 9, 9]}] if there else [] for there in wanted]
    for n in range(40):
        Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / f"{n:02d}.png")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "found.jsonl").write_text("".join(json.dumps({"detections": row}) + "\n" for row in found))
    base = ["evaluate", "--images", tmp_path / "pictures", "--prompts", tmp_path / "prompts.jsonl", "--measure", "geneval"]
    asked = [*base, "--scorer", "geneval", f"detections={tmp_path / 'found.jsonl'}", "--out", tmp_path / "e"]
    assert run(capsys, *asked)[0] == 0
    result = json.loads((tmp_path / "e" / "result.json").read_text())
    assert result["values"]["geneval"] == pytest.approx(sum(wanted) / 40)
