"""Which folders make a study, and what is said about those that do not."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from studies import draw, info_of, study_of

from neighbor_grpo.arena.media import degraded_png, plain_png
from neighbor_grpo.arena.study import Pair, StudyInfo, read_study
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.listing import Picture, read_listing, write_listing
from neighbor_grpo.run.record import Record, write_record

PROMPTS = ["a cube", "a ball"]


def keep_samples(run, iteration, prompts=PROMPTS, seeds=2):
    """Write what a run keeps of an evaluation."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    with atomic.directory(run / "samples" / f"{iteration:06d}", "samples") as aside:
        for p in range(len(prompts)):
            for s in range(seeds):
                Image.new("RGB", (8, 8), (iteration, p, s)).save(aside / f"{p:02d}-{s}.png")
        (aside / "prompts.json").write_text(json.dumps(prompts))
    write_record(run, Record({}, {}))
    return run


def test_a_study_of_samples(tmp_path):
    study = read_study(
        [str(draw(tmp_path / "old", PROMPTS, (3, 7))), f"new={draw(tmp_path / 'x', PROMPTS, (3, 7), 1)}"], ["looks"]
    )
    info = study.info
    assert (info.models, info.prompts, info.seeds) == (["old", "new"], PROMPTS, [[3, 7]] * 2)
    assert info.questions == ["overall", "looks"] and info.categories == [None, None]
    assert info.pairs() == [Pair(0, 1, p, s) for p in (0, 1) for s in (0, 1)]
    assert study.files[1, 1, 0] == tmp_path / "x" / "0001-seed3.png"
    assert StudyInfo.from_json(info.to_json()) == info


def test_categories_of_prompts(tmp_path):
    for model in ("a", "b"):
        folder = draw(tmp_path / model, PROMPTS)
        rows = read_listing(folder)
        write_listing(folder, [Picture(row.prompt, row.number, row.seed, row.file, f"kind {row.number}") for row in rows])
    assert read_study([str(tmp_path / "a"), str(tmp_path / "b")]).info.categories == ["kind 0", "kind 1"]


def test_a_run_alone_is_compared_before_and_after(tmp_path):
    run = keep_samples(keep_samples(keep_samples(tmp_path / "run", 0), 5), 10)
    study = read_study([str(run)])
    assert study.info.models == ["before", "after"] and study.files[1, 0, 1] == run / "samples/000010/00-1.png"
    (run / "samples/000010/00-1.png").write_bytes(b"damaged")
    assert read_study([str(run)]).files[1, 0, 1] == run / "samples/000005/00-1.png"


def test_a_comparison_gives_a_model_for_each_method(tmp_path):
    for method in ("flow_grpo", "neighbor"):
        for seed in (10, 9):
            keep_samples(tmp_path / method / f"seed-{seed}", 4)
    (tmp_path / "comparison.yaml").touch()
    study = read_study([str(tmp_path)])
    assert study.info.models == ["flow_grpo", "neighbor"]
    assert study.files[0, 0, 0] == tmp_path / "flow_grpo/seed-9/samples/000004/00-0.png"


def fails(folders, match):
    with pytest.raises(UserError, match=match) as caught:
        read_study([str(folder) for folder in folders])
    assert "\n" not in str(caught.value)


def test_folders_that_make_no_study(tmp_path):
    whole = draw(tmp_path / "whole", PROMPTS, (0, 1))
    fails([tmp_path / "none"], "no folder")
    fails([whole], "one model only, whole: give the folders of two")
    fails([whole, whole], "NAME=DIR")
    fails([tmp_path, whole], r"no pictures.json: run")
    fails(
        [whole, draw(tmp_path / "text", ["a cube", "a hat"], (0, 1))], r"prompt 1 is 'a ball' in .*whole and 'a hat' in .*text"
    )
    fails(
        [whole, draw(tmp_path / "seed", PROMPTS, (0, 2))],
        r"seed has no picture of prompt 0, 'a cube', seed 1, which .*whole has",
    )
    fails([whole, draw(tmp_path / "more", [*PROMPTS, "a hat"], (0, 1))], r"whole has no picture of prompt 2, 'a hat', seed 0")
    fails([keep_samples(tmp_path / "once", 0)], "train on, or add a folder")
    fails([draw(tmp_path / "twice", PROMPTS, (0, 0)), whole], "lists two pictures of one prompt")


@pytest.mark.parametrize("change", ["missing", "short", "text"])
def test_pictures_that_are_missing_or_broken(tmp_path, change):
    folders = [draw(tmp_path / name, PROMPTS, tone=n) for n, name in enumerate("ab")]
    file = folders[1] / "0001-seed0.png"
    data = file.read_bytes()
    file.unlink() if change == "missing" else file.write_bytes(data[: len(data) // 2] if change == "short" else b"<html>")
    fails(folders, "0001-seed0.png")


@pytest.mark.parametrize("text", ["[]", "{", '{"version": 1, "pictures": []}', '{"version": 1, "pictures": [{"prompt": 3}]}'])
def test_a_damaged_listing(tmp_path, text):
    (draw(tmp_path / "a", PROMPTS) / "pictures.json").write_text(text)
    fails([tmp_path / "a"], "is damaged")


def test_pictures_carry_nothing_but_pixels(tmp_path):
    noted = PngInfo()
    noted.add_text("parameters", "Model: secret-model")
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    image.save(tmp_path / "a.png", pnginfo=noted, dpi=(72, 72))
    camera = Image.Exif()
    camera[305] = "secret-model"  # Software
    image.save(tmp_path / "a.webp", lossless=True, exif=camera)
    for name in ("a.png", "a.webp"):
        plain = plain_png(tmp_path / name)
        (tmp_path / "plain.png").write_bytes(plain)
        with Image.open(tmp_path / "plain.png") as shown:
            assert shown.info.get("parameters") is None and shown.convert("RGB").tobytes() == image.tobytes()
        assert b"secret" in (tmp_path / name).read_bytes() and b"secret" not in plain


def test_a_video_stays_one(tmp_path):
    frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=50)
    for data in (plain_png(tmp_path / "a.png"), degraded_png(tmp_path / "a.png")):
        (tmp_path / "shown.png").write_bytes(data)
        with Image.open(tmp_path / "shown.png") as shown:
            assert shown.n_frames == 5


def test_a_degraded_copy_is_always_the_same_and_far_from_the_picture(tmp_path):
    file = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").save(file)
    data = degraded_png(file)
    degraded_png.cache_clear()
    assert degraded_png(file) == data
    (tmp_path / "b.png").write_bytes(data)
    with Image.open(file) as a, Image.open(tmp_path / "b.png") as b:
        difference = [abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)]
    assert sum(difference) / len(difference) > 20


def test_another_study_is_told_by_what_differs():
    info_of().refuse_other(info_of(), "x")
    with pytest.raises(UserError, match=r'models \["model-0", "model-1", "model-2"\], not \["model-0", "model-1"\]'):
        info_of().refuse_other(info_of(3), "x")


def test_other_pictures_are_another_study(tmp_path):
    study = study_of(tmp_path)
    Image.new("RGB", (9, 9)).save(study.files[0, 2, 0])
    again = study_of(tmp_path / "again")
    changed = read_study([str(tmp_path / "model-0"), str(tmp_path / "model-1")])
    assert again.info == study.info
    with pytest.raises(UserError, match="another --db"):
        changed.info.refuse_other(study.info, "x")
