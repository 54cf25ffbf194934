"""Build the wheel, install it into a fresh environment and use it outside of the repository: `python tools/wheel.py`.

The environment has the pinned requirements of the package and nothing else, so a missing requirement or a missing file shows.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
RUN = ("iterations=2", "prompts.per_iteration=2", "evaluate.prompts=4", "evaluate.every=0", "run_dir=run", "device=cpu")
BUNDLED = ("model.path=scenes", "model.guidance_scale=null", "model.height=64", "model.width=64")
BUNDLED += ("prompts.path=scenes", "prompts.eval_path=scenes")
LEFT = ("config.yaml", "metrics.jsonl", "report.html", "lora", "checkpoints/000002")


def call(*command: object, cwd: Path) -> str:
    """Run a command without this repository's modules in reach; return its output.

    Raises:
        SystemExit: if the command fails; its output is printed.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PIP_CONSTRAINT": str(CONSTRAINTS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(f"{time.monotonic() - began:6.1f} s  {' '.join(words)}", flush=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nwheel: the command above ended with {done.returncode}")
    return done.stdout


def example() -> str:
    """Return the Python example of the README."""
    return (ROOT / "README.md").read_text(encoding="utf-8").split("```python\nfrom ")[1].split("```")[0].join(("from ", ""))


def main() -> None:
    """Build, install and use the wheel."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        call(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=place)
        wheel = next((place / "dist").glob("*.whl"))
        venv.create(place / "fresh", with_pip=True)
        command = place / "fresh" / "bin" / "neighbor-grpo"
        call(place / "fresh" / "bin" / "pip", "install", "-q", "--no-compile", wheel, cwd=place)
        version = call(command, "--version", cwd=place).split()[-1]
        if f"-{version}-" not in wheel.name:
            raise SystemExit(f"wheel: {wheel.name} says that it is version {version}")
        call(command, "--help", cwd=place)
        call(command, "plan", "--preset", "flux_dev/neighbor_8", *BUNDLED, cwd=place)
        call(command, "demo", *RUN, cwd=place)
        if missing := [name for name in LEFT if not (place / "run" / name).exists()]:
            raise SystemExit(f"wheel: the run left no {', '.join(missing)}")
        call(place / "fresh" / "bin" / "python", "-c", example(), cwd=place)
        print(f"wheel: {wheel.name} works ({wheel.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
