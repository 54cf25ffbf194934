"""Videos from the command line: drawn, trained on, evaluated."""

import json

import family_wan
import family_wan_i2v
import pytest
import torch
from runs import metrics, settings

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import read_file, save_png
from neighbor_grpo.prompts.reading import read_prompts

SIZE = ["--height", "32", "--width", "32", "--num-frames", "5", "--steps", "2", "--solver", "euler", "--device", "cpu"]
DRAWN = ["model.height=32", "model.width=32", "model.num_frames=5", "model.max_sequence_length=null"]


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    place = tmp_path_factory.mktemp("wan")
    family_wan.build().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def wan_i2v(tmp_path_factory):
    place = tmp_path_factory.mktemp("wan_i2v")
    family_wan_i2v.build().save_pretrained(place)
    return place


def test_sampled_videos_are_animated_and_evaluated_by_their_frames(wan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--model", str(wan), *SIZE, "--prompt", "a red circle", "--out", "drawn"]) == 0
    assert read_file(tmp_path / "drawn" / "0000-seed0.png").shape == (5, 3, 32, 32)
    (tmp_path / "p.txt").write_text("a red circle\ntwo blue stars\n")
    names = [item for name in ("motion", "jpeg_size", "jpeg_compressibility") for item in ("--measure", name)]
    assert main(["evaluate", "--model", str(wan), *SIZE, "--prompts", "p.txt", "--seeds", "1", *names, "--out", "found"]) == 0
    found = json.loads((tmp_path / "found" / "result.json").read_text())["values"]
    films = [read_file(tmp_path / "found" / "pictures" / f"{n:05d}-0.png") for n in range(2)]
    assert found["motion"] == pytest.approx(sum(film.diff(dim=0).abs().mean().item() for film in films) / 2, rel=1e-5)
    assert found["jpeg_compressibility"] == pytest.approx(-found["jpeg_size"] / 1000 / 500, rel=1e-6)


def test_a_reward_of_videos_is_trained_on_and_samples_are_films(wan, tmp_path):
    overrides = settings(wan, tmp_path, *DRAWN, "iterations=1", "watch=[motion]", function="still")
    (tmp_path / "reward.py").write_text(
        "def still(videos, prompts, metadata):\n"
        "    assert videos.ndim == 5 and videos.shape[1] == 5\n"
        "    return -videos.diff(dim=1).abs().mean((1, 2, 3, 4))\n"
        "still.of_videos = True\n"
    )
    assert main(["train", *overrides]) == 0
    lines = metrics(tmp_path / "run")
    still = next(key for key in lines[0] if key.startswith("eval/") and key.endswith(":still"))
    assert lines[0][still] == pytest.approx(-lines[0]["eval/motion"], rel=1e-5)
    assert read_file(next((tmp_path / "run" / "samples" / "000001").iterdir())).shape == (5, 3, 32, 32)


def test_prompts_bring_the_picture_that_a_video_starts_from(wan_i2v, tmp_path, capsys):
    place = tmp_path / "data"
    place.mkdir()
    for n in range(3):
        save_png(torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(n)), place / f"{n}.png")
    rows = [{"prompt": f"prompt {n}", "image": f"{n}.png"} for n in range(3)]
    (place / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = [f"prompts.path={place / 'p.jsonl'}", f"prompts.eval_path={place / 'p.jsonl'}"]
    overrides = settings(wan_i2v, tmp_path, *DRAWN, "iterations=1", "watch=[motion]", *prompts)
    assert main(["train", *overrides]) == 0
    assert metrics(tmp_path / "run")[1]["grad_norm"] > 0
    without = settings(wan_i2v, tmp_path, *DRAWN, f"run_dir={tmp_path / 'other'}")
    assert main(["train", *without]) == 2
    assert "give every prompt one" in capsys.readouterr().err


def test_pictures_of_prompts_that_are_missing_or_not_taken(wan, tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "image": "gone.png"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl line 1: no picture 'gone\.png'"):
        read_prompts(str(file))
    save_png(torch.zeros(3, 8, 8), tmp_path / "gone.png")
    assert read_prompts(str(file))[0].images == (tmp_path / "gone.png",)
    assert main(["train", *settings(wan, tmp_path, *DRAWN, f"prompts.path={file}", f"prompts.eval_path={file}")]) == 2
    assert 'leave "image" out of the prompts' in capsys.readouterr().err
    file.write_text('{"prompt": "a", "images": ["gone.png", "gone.png"]}\n')
    assert read_prompts(str(file))[0].images == (tmp_path / "gone.png",) * 2
    for line, remedy in (('"images": "gone.png"', 'write "image"'), ('"image": "gone.png", "images": []', "give one of them")):
        file.write_text('{"prompt": "a", ' + line + "}\n")
        with pytest.raises(UserError, match=f"line 1.*{remedy}"):
            read_prompts(str(file))
    file.write_text('{"prompt": "a", "image": "gone.png"}\n{"prompt": "b"}\n')
    assert main(["sample", "--model", str(wan), *SIZE, "--prompts", str(file), "--out", str(tmp_path / "out")]) == 2
