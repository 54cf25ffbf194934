"""The pages' Python runs as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A folder with the method of docs/new-method.md, and the code that trains it on a known flow."""
    folder = tmp_path_factory.mktemp("page")
    method, toy = blocks("docs/new-method.md")
    (folder / "best_of_g.py").write_text(method)
    return folder, toy


def test_the_method_of_the_page_learns_the_known_flow(page):
    folder, toy = page
    rewards = [float(line.split()[1]) for line in run(toy, folder).splitlines()]
    assert rewards[-1] > 0.9 * rewards[0]  # negative numbers


def test_the_method_of_the_page_passes_the_invariants_and_trains_a_model(page, tiny_flux, tmp_path):
    from runs import metrics, settings

    from neighbor_grpo.config import load_config
    from neighbor_grpo.training.trainer import Trainer

    folder, _ = page
    common = [item for item in settings(tiny_flux, tmp_path, "iterations=2") if not item.startswith("method.")]
    config = load_config(None, [f"method.name={folder / 'best_of_g.py'}:BestOfG", "method.group_size=4", *common])
    lines = metrics(Trainer(config).run())[1:]
    assert all(line["nfe_theta"] == line["nfe_frozen"] == 1.0 for line in lines)
    assert lines[0]["kept"] == 0.0 < lines[1]["kept"]  # the LoRA starts at zero


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path):
    reward, example = blocks("README.md")
    assert "def score(images, prompts, metadata)" in reward
    assert '"iteration": 2' in run(example, tmp_path)
    assert (tmp_path / "runs" / "001" / "report.html").is_file()


def test_the_chinese_readme_has_the_same_commands_numbers_and_links():
    def facts(page):
        text = (ROOT / page).read_text(encoding="utf-8")
        code = [line.partition("#")[0].rstrip() for line in re.findall(r"^```(?:sh|python)\n(.*?)^```", text, re.M | re.S)]
        links = [link.replace(".zh.md", ".md") for link in re.findall(r"\]\(((?:docs|src)/[^)]+)\)", text)]
        numbers = re.findall(r"0\.\d+ ± 0\.\d+|\b\d\.\d ± \d\.\d", text)
        return code, sorted(links), numbers

    assert facts("README.md") == facts("README.zh.md")
