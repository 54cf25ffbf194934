"""The rules of the house that a program can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import rooms

ROOT = Path(rooms.__file__).parents[1]
FILES = sorted(rooms.PACKAGE.rglob("*.py"))
SCRIPTS = sorted(file for folder in ("tests", "benchmarks", "tools") for file in (ROOT / folder).rglob("*.py"))
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_every_room_has_its_place_in_the_order():
    assert rooms.unknown() == [] and len(rooms.files()) <= 20


def test_rooms_import_only_lower_rooms():
    found = rooms.arrows()
    assert rooms.upward(found) == [] and rooms.circle(found) == [] and len(found) <= 90


def test_a_room_above_and_a_circle_are_found():
    assert rooms.upward({("flow", "methods"): ["flow/sde.py:3"], ("methods", "flow"): ["methods/tree.py:1"]}) == [
        "flow/sde.py:3 (flow) imports methods, which stands higher"
    ]
    assert {"flow", "methods"} == set(rooms.circle({("flow", "methods"): [], ("methods", "flow"): [], ("cli", "flow"): []}))


def test_files_are_short():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES + SCRIPTS}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def undocumented(node: Documented, name: str) -> list[str]:
    """Names of what is public in a module or class and has no docstring, itself included."""
    found = [] if ast.get_docstring(node) else [name]
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                found += undocumented(child, f"{name}.{child.name}")
    return found


def test_what_is_public_has_a_docstring():
    names = {str(file.relative_to(rooms.PACKAGE)): ast.parse(file.read_text()) for file in FILES}
    assert [name for file, module in names.items() for name in undocumented(module, file)] == []


def test_public_names():
    import neighbor_grpo
    from neighbor_grpo.flow.sde import cps_sde, dance_sde, flow_sde
    from neighbor_grpo.flow.solvers import dpmpp_2m, dpmpp_3m, euler, heun
    from neighbor_grpo.methods.advantage import quasi_norm, z_score
    from neighbor_grpo.methods.policy import clipped_surrogate, gaussian_log_prob, leap_log_prob

    names = {"Trainer", "load_config", "Config", "load_model", "METHODS", "MODELS", "REWARDS", "__version__"}
    assert names == set(neighbor_grpo.__all__) and all(hasattr(neighbor_grpo, name) for name in names)
    functions = [euler, heun, dpmpp_2m, dpmpp_3m, flow_sde, dance_sde, cps_sde, z_score, quasi_norm]
    functions += [leap_log_prob, gaussian_log_prob, clipped_surrogate, neighbor_grpo.Trainer, neighbor_grpo.load_model]
    assert all(callable(function) and function.__doc__ for function in functions)
    assert "neighbor" in neighbor_grpo.METHODS and "FluxPipeline" in neighbor_grpo.MODELS and "scenes" in neighbor_grpo.REWARDS


def run(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python that finds the package where this one does."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_help_loads_nothing_heavy():
    code = """
import sys
sys.argv = ["neighbor-grpo", "--help"]
from neighbor_grpo.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
found = {"torch", "diffusers", "transformers"} & sys.modules.keys()
assert not found, found
"""
    done = run(code)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_nothing_of_it_imports_torchvision():
    """All other tests run where it is not installed."""
    assert not any(re.search(r"^\s*(import|from) torchvision", path.read_text(), re.M) for path in FILES)
