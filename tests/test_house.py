"""The rules of the house that a program can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neighbor_grpo

ROOT = Path(neighbor_grpo.__file__).parent
ORDER = [
    "errors",
    "path",
    "solvers",
    "sde",
    "policy",
    "advantage",
    "tree",
    "methods",
    "update",
    "collector",
    "learner",
    "trainer",
    "cli",
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neighbor_grpo"):
            names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
            yield from names


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_flow_one_way(file):
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(file):
        if room in ORDER and name in ORDER:
            assert ORDER.index(name) <= ORDER.index(room), f"{room} imports {name}"
        if room in ("models", "rewards"):
            assert name not in ("methods", "update", "trainer", "config", "cli"), f"{room} imports {name}"


def test_public_names():
    from neighbor_grpo.config import Config, load_config
    from neighbor_grpo.flow.sde import dance_sde, flow_sde
    from neighbor_grpo.flow.solvers import dpmpp_2m, dpmpp_3m, euler, heun
    from neighbor_grpo.methods import METHODS
    from neighbor_grpo.methods.advantage import quasi_norm, z_score
    from neighbor_grpo.methods.policy import clipped_surrogate, gaussian_log_prob, leap_log_prob
    from neighbor_grpo.models.registry import MODELS, load_model
    from neighbor_grpo.rewards.registry import REWARDS
    from neighbor_grpo.training.trainer import Trainer

    public = [
        quasi_norm,
        z_score,
        Config,
        load_config,
        load_model,
        clipped_surrogate,
        gaussian_log_prob,
        leap_log_prob,
        dance_sde,
        flow_sde,
        dpmpp_2m,
        dpmpp_3m,
        euler,
        heun,
        Trainer,
    ]
    assert all(callable(name) and name.__doc__ for name in public)
    assert "neighbor" in METHODS and "FluxPipeline" in MODELS and "scenes" in REWARDS


def test_works_without_torchvision():
    code = "import sys; sys.modules['torchvision'] = None; import neighbor_grpo.training.trainer, neighbor_grpo.scenes.pretrain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
