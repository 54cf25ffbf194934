import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import mistake, run

from neighbor_grpo.rewards.jpeg import jpeg_compressibility

PROMPTS = ["a red circle", "two blue stars", "a green square", "a yellow triangle", "three red stars"]
FLAKY = """
def blueness(images, prompts, metadata):
    return [RuntimeError("no view") if "star" in p else float(i[2].mean()) for i, p in zip(images, prompts)]

def brightness(images, prompts, metadata):
    open(COUNT, "a").write("x" * len(prompts))
    return images.mean((1, 2, 3))
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "reward.py").write_text(FLAKY.replace("COUNT", repr(str(tmp_path / "count"))))
    return tmp_path


def evaluation(tiny_flux, place, out, *more):
    return ["evaluate", "--model", tiny_flux, "--prompts", place / "prompts.txt", "--steps", 3, "--out", place / out, *more]


def result(place, out):
    return json.loads((place / out / "result.json").read_text())


def test_the_values_are_those_of_the_picture_files(capsys, tiny_flux, place):
    measures = ("--measure", "jpeg_compressibility", "--measure", "saturation", "--seeds", 3)
    assert run(capsys, *evaluation(tiny_flux, place, "a", *measures))[0] == 0
    files = sorted((place / "a" / "pictures").iterdir())
    assert [file.name for file in files] == [f"{p:05d}-{s}.png" for p in range(5) for s in range(3)]
    images = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files]
    values = np.array(jpeg_compressibility(images, PROMPTS * 3, [{}] * 15)).reshape(5, 3)
    got = result(place, "a")
    assert got["values"]["jpeg_compressibility"] == pytest.approx(values.mean(), abs=1e-9)
    colour = np.mean([float((image.amax(0) - image.amin(0)).mean()) for image in images])
    assert got["values"]["saturation"] == pytest.approx(colour, abs=1e-6)
    low, high = got["intervals"]["jpeg_compressibility"]
    assert values.mean(1).min() <= low < values.mean() < high <= values.mean(1).max()
    assert (place / "a" / "gallery.html").read_text().count("<img") == 15


def test_a_folder_of_the_same_pictures_has_the_same_numbers(capsys, tiny_flux, place):
    measures = ("--measure", "jpeg_compressibility", "--measure", "diversity")
    run(capsys, *evaluation(tiny_flux, place, "a", *measures))
    arguments = ("evaluate", "--images", place / "a" / "pictures", "--prompts", place / "prompts.txt", "--out", place / "b")
    assert run(capsys, *arguments, *measures, "--against", place / "a")[0] == 0
    a, b = result(place, "a"), result(place, "b")
    assert a["values"] == b["values"] and a["intervals"] == b["intervals"]
    assert b["against"]["measures"]["jpeg_compressibility"]["win_rate"] == 0.5
    assert b["against"]["differs"]["images"] == [str(place / "a" / "pictures"), None]


def test_a_folder_is_read_in_natural_order(capsys, place):
    (place / "drawn").mkdir()
    for n in range(15):  # 10.png stands before 2.png by its letters
        Image.new("RGB", (32, 32), (n, n, n)).save(place / "drawn" / f"{n}.png")
    bright = ("--measure", f"{place / 'reward.py'}:brightness")
    arguments = ("evaluate", "--images", place / "drawn", "--prompts", place / "prompts.txt", "--out", place / "a", *bright)
    assert run(capsys, *arguments)[0] == 0
    scores = [json.loads(line) for line in (place / "a" / "scores-0.jsonl").read_text().splitlines()]
    values = {line["prompt"]: line["values"] for line in scores if "prompt" in line}
    assert values[4] == pytest.approx([12 / 255, 13 / 255, 14 / 255])


@pytest.mark.parametrize(
    "option",
    [("--steps", 4), ("--solver", "euler"), ("--seeds", 2), ("--cfg", 2), ("--height", 32), ("--shift", "auto"), ("--best",)],
)
def test_what_has_no_effect_on_a_folder_is_refused(capsys, place, option):
    assert f"leave out {option[0]}" in mistake(capsys, "evaluate", "--images", place, "--out", place / "a", *option)


def test_a_stopped_evaluation_computes_only_what_is_missing(capsys, tiny_flux, place):
    bright = ("--measure", f"{place / 'reward.py'}:brightness")
    run(capsys, *evaluation(tiny_flux, place, "a", *bright, "--limit", 5))
    first, pictures = result(place, "a"), place / "a" / "pictures"
    (pictures / "00003-1.png").unlink()
    with (place / "a" / "scores-0.jsonl").open() as file:
        lines = file.readlines()
    (place / "a" / "scores-0.jsonl").write_text("".join(lines[:2]) + lines[2][:20])  # killed in the third line
    times = {file: file.stat().st_mtime_ns for file in pictures.iterdir() if not file.name.startswith("00003")}
    assert run(capsys, *evaluation(tiny_flux, place, "a", *bright, "--measure", "jpeg_size"))[0] == 0
    again = result(place, "a")
    # drawn in another batch, a pixel may be rounded otherwise
    assert again["values"][bright[1]] == pytest.approx(first["values"][bright[1]], abs=1e-6) and "jpeg_size" in again["values"]
    assert (place / "count").read_text().count("x") == 10 + 6  # five prompts of two, then the three that were lost
    assert times == {file: file.stat().st_mtime_ns for file in times}


def test_failures_are_counted_and_too_many_leave_no_mean(capsys, tiny_flux, place):
    blue = ("--measure", f"{place / 'reward.py'}:blueness")
    _, out, _ = run(capsys, *evaluation(tiny_flux, place, "a", *blue))
    got, name = result(place, "a"), blue[1]
    assert got["values"][name] is None and got["failed"][name] == 4 and name not in got["intervals"]
    assert "too many failed" in out and "RuntimeError: no view" in out
    run(capsys, *evaluation(tiny_flux, place, "a", *blue, "--max-failed", 0.5))
    images = [torch.from_numpy(np.array(Image.open(file))) / 255 for file in sorted((place / "a" / "pictures").iterdir())]
    kept = [float(image[..., 2].mean()) for n, image in enumerate(images) if "star" not in PROMPTS[n // 2]]
    assert result(place, "a")["values"][name] == pytest.approx(np.mean(kept), abs=1e-6)
    (place / "reward.py").write_text(FLAKY.replace('"star" in p', "False"))  # mended: what failed is scored, and only that
    run(capsys, *evaluation(tiny_flux, place, "a", *blue))
    every = [float(image[..., 2].mean()) for image in images]
    assert result(place, "a")["values"][name] == pytest.approx(np.mean(every), abs=1e-6)


def test_a_lora_trained_for_brightness_wins_every_pair(capsys, tiny_flux, place):
    """One LoRA makes pictures brighter, the other changes nothing: the sign test over five prompts gives p = 2 / 32."""
    from peft.utils import get_peft_model_state_dict

    from neighbor_grpo.models.attach import add_lora
    from neighbor_grpo.models.lora import save_lora
    from neighbor_grpo.models.registry import load_model

    bright = ("--measure", f"{place / 'reward.py'}:brightness", "--seeds", 2)
    for name, steps in (("still", 0), ("taught", 12)):
        model = load_model(tiny_flux)
        add_lora(model.transformer, 4, 8.0, ["to_q", "to_k", "to_v", "to_out.0"])
        weights = [p for p in model.transformer.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=0.05)
        cond, noise = model.encode(PROMPTS), model.noise(len(PROMPTS), torch.Generator().manual_seed(9))
        vae = model.pipe.vae
        for _ in range(steps):  # the picture of one Euler step, pushed up
            x0 = noise - model.velocity(noise, 1.0, cond)
            latent = model.pipe._unpack_latents(x0, model.height, model.width, model.pipe.vae_scale_factor)
            latent = latent / vae.config.scaling_factor + vae.config.shift_factor
            (-vae.decode(latent).sample.mean()).backward()
            optimizer.step(), optimizer.zero_grad()
        save_lora(model.pipe, model.transformer, place / name)
        assert get_peft_model_state_dict(model.transformer)
        more = ("--against", place / "e-still") if steps else ()
        assert run(capsys, *evaluation(tiny_flux, place, f"e-{name}", *bright, "--lora", place / name, *more))[0] == 0
    pair = result(place, "e-taught")["against"]["measures"][bright[1]]
    assert pair["prompts_better"] == 5 and pair["prompts_worse"] == 0 and pair["win_rate"] == 1.0
    assert pair["low"] > 0 and pair["p_value"] == pytest.approx(2 / 32)


def test_a_mistake_is_refused_with_its_remedy(capsys, tiny_flux, place):
    base = evaluation(tiny_flux, place, "a", "--measure", "jpeg_size")
    run(capsys, *base)
    assert "seeds is 2, not 3" in mistake(capsys, *base, "--seeds", 3)
    assert "no evaluation there" in mistake(capsys, *base, "--against", place / "none")
    run(capsys, *evaluation(tiny_flux, place, "b", "--measure", "saturation"))
    assert "has no jpeg_size" in mistake(capsys, *base, "--against", place / "b")
    run(capsys, *evaluation(tiny_flux, place, "c", "--measure", "jpeg_size", "--limit", 3))
    assert "same prompts and seeds" in mistake(capsys, *base, "--against", place / "c")
    assert "holds no evaluation" in mistake(capsys, "evaluate", "--model", tiny_flux, "--out", place)
    (place / "empty").mkdir()
    folder = ("evaluate", "--prompts", place / "prompts.txt", "--out", place / "z", "--measure", "jpeg_size", "--images")
    assert "no pictures in" in mistake(capsys, *folder, place / "empty")
    assert "a folder of pictures" in mistake(capsys, *folder, place / "nowhere")
    Image.new("RGB", (32, 32)).save(place / "empty" / "1.png")
    assert "not a multiple of the 5 prompts" in mistake(capsys, *folder, place / "empty")
    for n, side in enumerate((32, 32, 40, 32)):
        Image.new("RGB", (side, 32)).save(place / "empty" / f"{n + 2}.png")
    assert "4.png is 40 x 32 pixels" in mistake(capsys, *folder, place / "empty")
    (place / "empty" / "4.png").write_bytes(b"no picture")
    assert "4.png cannot be read" in mistake(capsys, *folder, place / "empty")
    assert "leave out --model" in mistake(capsys, *folder, place / "empty", "--model", tiny_flux)
    assert "give the file of a LoRA" in mistake(capsys, *base, "--lora", place / "empty")
    assert "write key=value" in mistake(capsys, *base, "--scorer", "clip", "weights")
    assert "has no settings" in mistake(capsys, *base, "--measure", "scenes", "--scorer", "scenes", "a=1")
