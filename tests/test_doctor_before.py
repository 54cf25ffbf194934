"""What the doctor says before a run, on the random-weight pipeline; the reward's checks see hand-made pictures."""

import json
import re
from pathlib import Path

import pytest
import torch
from pipelines import build_flux
from runs import DETACHED, settings

from neighbor_grpo.cli import main
from neighbor_grpo.config import load_config
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.findings import REMEDIES, early
from neighbor_grpo.training.doctor.before import findings_before
from neighbor_grpo.training.doctor.gradients import _flat_times, _Group
from neighbor_grpo.training.doctor.texts import encoder_findings

ROOT = Path(__file__).parents[1]
PROMPTS = [
    Prompt(f"{count} {colour} {shape}") for count in ("two", "a") for colour in ("red", "blue") for shape in ("circle", "star")
]
REWARD = """
import torch

def noise(images, prompts, metadata):
    return torch.rand(len(prompts))

def reversed_prompts(images, prompts, metadata):
    return [float(image.mean()) * len(prompt) for image, prompt in zip(images, prompts[::-1])]
"""
METHOD = f"""{DETACHED}
@dataclass(frozen=True)
class Half(Neighbor):
    def source(self, parts):
        for name, weight in parts.learner.weights.items():
            weight.requires_grad_("lora_A" not in name)
"""


@pytest.fixture
def bad(tiny_flux, tmp_path):
    """Return the warnings and errors of a small configuration with these changes."""
    (tmp_path / "own.py").write_text(REWARD)
    (tmp_path / "method.py").write_text(METHOD)

    def found(*more: str, function: str = "brightness") -> dict[str, str]:
        config = load_config(None, settings(tiny_flux, tmp_path, "reward.watch=[]", "iterations=300", *more, function=function))
        findings = list(findings_before(config, 0.01))
        assert not (tmp_path / "run").exists()
        assert all(finding.name in REMEDIES for finding in findings)
        return {finding.name: finding.verdict for finding in findings if finding.verdict in ("warning", "error")}

    return found


def test_times_at_which_groups_have_no_spread_are_named():
    def group(t, size):
        return _Group(torch.full((3,), float(size)), t)

    seen = [group(0.9, 1)] * 2 + [group(0.9, 0)] * 2 + [group(0.4, 0)] * 3 + [group(0.4, 1)] + [group(0.1, 0)] * 3
    found = _flat_times([*seen, group(None, 0)])  # half of those at 0.9, three of four at 0.4, too few at 0.1
    assert (found.verdict, found.value) == ("warning", 0.75) and "t = 0.400 have" in found.text
    assert _flat_times(seen[:4]) is None and _flat_times([]) is None
    assert _flat_times(seen[4:]).verdict == "error"


def test_a_sound_configuration(bad):
    assert bad() == {}


@pytest.mark.parametrize(
    ("name", "more", "function"),
    [
        ("reward_range", [], "flat"),
        pytest.param("reward_noise", ["reward={own}:noise"], "brightness", marks=pytest.mark.slow),
        ("prompt_order", ["reward={own}:reversed_prompts"], "brightness"),
        pytest.param("rate_low", ["optimizer.lr=1e-12"], "brightness", marks=pytest.mark.slow),
        pytest.param("rate_high", ["optimizer.lr=10"], "brightness", marks=pytest.mark.slow),
        ("noise_floor", ["method.clip=1e-12"], "brightness"),
        pytest.param("spread", ["method.sigma=1e-5"], "brightness", marks=pytest.mark.slow),
        ("frozen", ["method.name={method}:Detached"], "brightness"),
        pytest.param("frozen", ["method.name={method}:Half"], "brightness", marks=pytest.mark.slow),
    ],
)
def test_the_cause_is_named(bad, tmp_path, name, more, function):
    places = {"own": tmp_path / "own.py", "method": tmp_path / "method.py"}
    assert name in bad(*(item.format(**places) for item in more), function=function)


# ---------------------------------------------------------------- encoders


def verdicts(model) -> list[str]:
    return [finding.verdict for finding in encoder_findings(model, PROMPTS)]


def test_encoders_that_hear_nothing(tiny_flux):
    assert verdicts(load_model(tiny_flux)) == ["ok", "ok"]
    deaf = load_model(tiny_flux)
    with torch.no_grad():
        deaf.pipe.text_encoder_2.get_input_embeddings().weight.zero_()
    assert verdicts(deaf) == ["ok", "error"]
    half = load_model(tiny_flux)
    with torch.no_grad():
        half.pipe.text_encoder.get_input_embeddings().weight[10:].zero_()
    assert verdicts(half) == ["error", "ok"]


def cut(place: Path, kept: set[str]) -> Path:
    """Save the pipeline with a second tokenizer that knows only these words."""
    build_flux().save_pretrained(place)
    file = place / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    words = vocabulary if isinstance(vocabulary, dict) else dict(vocabulary)
    special = {token["content"] for token in content["added_tokens"]} | {content["model"].get("unk_token"), None}
    lost = {word for word in words if word not in special and word.strip("\u2581") not in kept}
    content["model"]["vocab"] = (
        {word: n for word, n in vocabulary.items() if word not in lost}
        if isinstance(vocabulary, dict)
        else [[f"lost{n}" if word in lost else word, score] for n, (word, score) in enumerate(vocabulary)]
    )
    file.write_text(json.dumps(content))
    return place


def test_a_tokenizer_that_lost_words(tmp_path):
    assert verdicts(load_model(cut(tmp_path / "flux", {"a", "two", "red", "blue"}))) == ["ok", "error"]


def test_a_tokenizer_that_lost_everything_is_a_finding(tmp_path):
    config = load_config(None, settings(cut(tmp_path / "flux", set()), tmp_path))
    assert [(f.name, f.verdict) for f in findings_before(config, 0.01)] == [("text_encoder", "error")]


# ---------------------------------------------------------------- figures of the first iterations


def test_early_findings():
    config = load_config(None, ["prompts.per_iteration=4"])
    line = {"flat_groups/scenes": 0, "grad_norm": 0.1, "ratio/noise_floor": 0.0, "ratio/clipped": 0.1}
    assert early(line, config) == []
    for change, name in (
        ({"flat_groups/scenes": 4, "grad_norm": 0.0}, "spread"),
        ({"grad_norm": 0.0}, "frozen"),
        ({"ratio/noise_floor": 2e-4}, "noise_floor"),
        ({"ratio/clipped": 0.5}, "clipped"),
    ):
        assert [finding.name for finding in early(line | change, config)] == [name]


def test_a_training_run_warns_once(tiny_flux, tmp_path, capsys):
    assert main(["train", *settings(tiny_flux, tmp_path, "reward.watch=[]", "evaluate.prompts=2", function="flat")]) == 0
    assert capsys.readouterr().out.count("troubleshooting/#spread") == 1


# ---------------------------------------------------------------- the guide


@pytest.mark.parametrize("page", ["troubleshooting.md", "troubleshooting.zh.md"])
def test_the_guide_has_a_section_for_each_finding(page):
    sections = re.findall(r"^## (\S+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)
    assert sections == list(REMEDIES)
