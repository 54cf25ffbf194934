"""The recipe of `words`: it begins with the first pictures; interrupted, it ends with the same weights."""

import pytest
import torch
from diffusers import FluxPipeline

from neighbor_grpo.cli import main
from neighbor_grpo.worlds import pretrain, unfinished
from neighbor_grpo.worlds.words.pretrain import RECIPE

SIZES = ("--vae-steps", "2", "--steps", "2", "--pictures", "4", "--batch", "2")


@pytest.mark.parametrize(
    ("ramp", "drawn"), [(0.0, [(0, 49)] * 4), (0.5, [(0, 14), (17, 31), (35, 49), (35, 49)])], ids=["all", "easy first"]
)
def test_a_ramp_moves_from_the_first_pictures_to_the_last(ramp, drawn):
    _, clip, _, t5 = RECIPE.text()
    seen = []
    clip.register_forward_pre_hook(lambda _, ids: seen.append(ids[0][:, 0]))
    parts = {"transformer": RECIPE.transformer(), "text_encoder": clip, "text_encoder_2": t5}
    ids = torch.arange(50)[:, None].expand(50, 24), torch.ones(50, 12, dtype=torch.long)  # CLIP's token is the picture's number
    vae = RECIPE.vae()
    vae.register_to_config(shift_factor=0.0)
    settings = pretrain.Settings(vae_steps=1, steps=100, pictures=50, batch=256, seed=0)
    _, loss = pretrain.flow_phase(vae, parts, torch.zeros(50, 16, 4, 12), ids, settings, ramp)
    for step in (0, 25, 50, 99):
        loss(torch.Generator().manual_seed(step), step)
    assert [(int(rows.min()), int(rows.max())) for rows in seen] == drawn


@pytest.mark.slow
def test_an_interrupted_recipe_ends_with_the_same_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 0.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = ["words", "pretrain", *SIZES, "--out"]
    assert main([*command, str(whole)]) == 0
    save = unfinished.save
    for phase in ("VAE", "flow"):  # stopped in each

        def save_and_stop(out, state, phase=phase):
            save(out, state)
            if state.get(phase, {}).get("step") == 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(unfinished, "save", save_and_stop)
            assert main([*command, str(stopped)]) == 130
    assert main([*command, str(stopped), "--seed", "1"]) == 2
    assert "seed=0" in capsys.readouterr().err.strip().splitlines()[-1]
    state = stopped / unfinished.NAME / "state.pt"
    whole_state = state.read_bytes()
    for damaged in (whole_state[:-1], whole_state[:99] + b"x" + whole_state[100:]):
        state.write_bytes(damaged)
        assert main([*command, str(stopped)]) == 2
        assert "unfinished is damaged: state.pt" in capsys.readouterr().err.strip().splitlines()[-1]
    state.write_bytes(whole_state)
    assert main([*command, str(stopped)]) == 0
    one, other = (FluxPipeline.from_pretrained(place).components for place in (whole, stopped))
    for name in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        weights = other[name].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in one[name].state_dict().items()), name
    assert not (stopped / unfinished.NAME).exists()
    assert main([*command, str(stopped)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_the_models_of_some_steps_are_kept_and_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "KEEP_EVERY", 2)
    command = ["words", "pretrain", *SIZES, "--steps", "3", "--keep", "--out", str(tmp_path / "model")]
    assert main(command) == 0
    kept = sorted(place.name for place in (tmp_path / "model").glob("step-*"))
    assert kept == ["step-2", "step-3"]
    one, other, last = (
        torch.cat([x.flatten() for x in FluxPipeline.from_pretrained(place).transformer.state_dict().values()])
        for place in (tmp_path / "model" / "step-2", tmp_path / "model" / "step-3", tmp_path / "model")
    )
    assert torch.equal(other, last) and not torch.equal(one, other)
