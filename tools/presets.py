"""Count the memory of every preset by its plan, and write the table of presets: `python tools/presets.py [NAME ...]`.

Published models are built in their true size without weights (tests/published.py).  It writes the column `memory` of
src/neighbor_grpo/presets/table.json and the table of docs/presets.md; the column `level` is written by hand.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from neighbor_grpo.config import Config, load_config, preset_names, read_preset  # noqa: E402
from neighbor_grpo.config.presets import LEVELS, TABLE  # noqa: E402

PAGE = ROOT / "docs" / "presets.md"
BUILT = {  # model.path of a preset: where its configuration is built
    "black-forest-labs/FLUX.1-dev": "published.flux_dev",
    "stabilityai/stable-diffusion-3.5-medium": "published.sd35_medium",
    "black-forest-labs/FLUX.1-schnell": "published_large.flux_schnell",
    "black-forest-labs/FLUX.2-klein-4B": "published_large.flux2_klein",
    "Qwen/Qwen-Image": "published_large.qwen_image",
    "Tongyi-MAI/Z-Image-Turbo": "published_large.z_image_turbo",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "published_large.wan21_t2v",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": "published_large.wan22_i2v",
    "hunyuanvideo-community/HunyuanVideo": "published_large.hunyuan_video",
}


def memory(config: Config, places: Path) -> float:
    """Return the peak of a configuration's plan in GB (10^9 bytes): on a GPU, or of a bundled world's model on a CPU."""
    from neighbor_grpo.planning.estimate import estimate

    path = config.model.path
    if path in BUILT:
        module, _, name = BUILT[path].partition(".")
        if not (places / name).exists():
            getattr(__import__(module), name)(places / name)
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(places / name)})})
    device = "cuda" if "/" in path else "cpu"  # a published model has the name of a repository
    peak = estimate(config, device).peak / 1e9
    return float(f"{peak:.2g}") if peak < 10 else round(peak)


def page() -> str:
    """Return the table of all presets for the documentation."""
    rows = ["| preset | memory | level | what it is |", "|---|---|---|---|"]
    for preset in map(read_preset, preset_names()):
        size = f"{preset.memory:g} GB" if preset.memory else ""
        rows.append(f"| `{preset.name}` | {size} | {preset.level} | {preset.summary} |")
    return "\n".join(rows)


def levels() -> str:
    """Return what the levels mean, for the documentation."""
    return "\n".join(f"- **{name}**: {text}" for name, text in LEVELS.items())


def written(text: str, mark: str, part: str) -> str:
    """Return a page with what stands between two marks replaced."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Count, and write the table and the page."""
    table = json.loads(TABLE.read_text())
    with tempfile.TemporaryDirectory() as places:
        for name in sys.argv[1:] or preset_names():
            if not read_preset(name).is_comparison:
                table[name]["memory"] = memory(load_config(presets=[name]), Path(places))
                print(f"{name}: {table[name]['memory']:g} GB", flush=True)
    rows = (f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(table.items()))
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    PAGE.write_text(written(written(PAGE.read_text(), "levels", levels()), "presets", page()))


if __name__ == "__main__":
    main()
