"""The recipe of `words`: interrupted, it goes on to the same weights."""

import pytest
import torch
from diffusers import FluxPipeline

from neighbor_grpo.cli import main
from neighbor_grpo.worlds import pretrain, unfinished

SIZES = ("--vae-steps", "2", "--steps", "2", "--pictures", "4", "--batch", "2")


@pytest.mark.slow
def test_an_interrupted_recipe_ends_with_the_same_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 1)
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
    assert main([*command, str(stopped)]) == 0
    one, other = (FluxPipeline.from_pretrained(place).components for place in (whole, stopped))
    for name in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        weights = other[name].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in one[name].state_dict().items()), name
    assert not (stopped / unfinished.FILE).exists()
    assert main([*command, str(stopped)]) == 2
    assert "not empty" in capsys.readouterr().err
