"""How long the page of a long run takes to write and to open, and how large it is.

    python benchmarks/run_page.py --iterations 10000 --prompts 25 --seeds 4 --pixels 512

makes the files of such a run (random curves; pictures of smooth noise with grain), writes its page and opens it in a headless
Chromium.  "opened" is the time from the request to the first frame after all curves are drawn, "busy" the CPU time of the
page's thread until then, which other work of the machine does not lengthen.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from neighbor_grpo.config import load_config
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files, report
from neighbor_grpo.run.record import Record

MEASURES = ("scenes", "scenes_strict", "scenes_distance", "diversity", "jpeg_size", "grid_artefacts", "saturation", "sharpness")
FIGURES = ("ratio/noise_floor", "ratio/log_max", "ratio/clipped", "kl", "loss", "grad_norm", "lr", "nfe_old", "nfe_theta")


def main() -> None:
    """Measure once and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="how often the page is opened")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, a.iterations, a.prompts, a.seeds, a.pixels)
        began = time.perf_counter()
        page = report.write(run)
        wrote, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = [opened(page) for _ in range(a.repeats)]
        pictures, size = 2 * a.prompts * a.seeds, page.stat().st_size / 1e6
    print(
        f"{a.iterations:,} iterations, {pictures} pictures of {a.pixels} x {a.pixels}: {size:.1f} MB, written in {wrote:.1f} s "
        f"with {peak:.2f} GB, opened in {', '.join(f'{wall:.2f} s (busy {busy:.2f} s)' for wall, busy in seconds)}"
    )


def make_run(run: Path, iterations: int, prompts: int, seeds: int, pixels: int) -> None:
    """Write the files of a finished run."""
    run.mkdir()
    config = load_config(None, [f"iterations={iterations}", f"run_dir={run}", "evaluate.every=100"])
    files.begin(run, config, ["a plan"], Record(config.model_dump(mode="json"), {}, ended="finished"))
    rng = np.random.default_rng(0)
    with (run / "metrics.jsonl").open("w") as file:
        for n in range(iterations + 1):
            file.write(json.dumps(line(n, rng)) + "\n")
    for iteration in (0, iterations):
        with atomic.directory(run / "samples" / f"{iteration:06d}", "samples") as aside:
            for p in range(prompts):
                for s in range(seeds):
                    picture(rng, pixels).save(aside / f"{p:02d}-{s}.png")
            (aside / "prompts.json").write_text(json.dumps([f"prompt {p} of a long run" for p in range(prompts)]))


def line(n: int, rng: np.random.Generator) -> dict[str, float]:
    """Draw a line of metrics.jsonl."""
    found: dict[str, float] = {"iteration": n}
    if n % 100 == 0:
        found |= {f"eval/{name}": float(rng.normal(1 + n / 1e4, 0.1)) for name in MEASURES} | {"eval_spread/scenes": 0.3}
    if n:
        found |= {"reward/scenes": float(rng.normal(n / 1e4, 0.2)), "spread/scenes": float(rng.uniform(0.1, 0.3))}
        found |= {name: float(rng.lognormal()) for name in FIGURES}
        found |= {f"time/{phase}": float(rng.uniform(1, 2)) for phase in files.TRAINING_PHASES}
    return found


def picture(rng: np.random.Generator, pixels: int) -> Image.Image:
    """Draw smooth colours with some grain."""
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((pixels, pixels), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (pixels, pixels, 3))
    return Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


_DRAWN = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


def opened(page: Path) -> tuple[float, float]:
    """Return the seconds until Chromium shows the page with all its curves, and the CPU seconds of its thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        session = shown.context.new_cdp_session(shown)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        shown.goto(page.as_uri())
        milliseconds = shown.evaluate(_DRAWN)
        measured = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        browser.close()
    return milliseconds / 1000, measured["TaskDuration"]


if __name__ == "__main__":
    main()
