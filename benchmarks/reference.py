"""Reference bands for the shipped configurations, from a finished comparison: a later run must end inside them.

    neighbor-grpo compare scenes/compare
    python benchmarks/reference.py runs/compare/scenes        writes tests/reference.json
    pytest -m slow                                            trains every row again and checks the bands

A band is the mean over seeds ± four standard deviations, and at least ± five percent of the mean.
"""

import json
import sys
from pathlib import Path

MEASURES = ("scenes", "scenes_strict", "scenes_distance", "diversity")


def band(mean: float, std: float) -> list[float]:
    """Return the band of a measure over seeds."""
    half = max(4 * std, 0.05 * abs(mean))
    return [round(mean - half, 4), round(mean + half, 4)]


def main() -> None:
    """Run the benchmark from the command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table = json.loads((Path(sys.argv[1]) / "results.json").read_text())["table"]
    reference = {
        row["run"]: {"lr": row["lr"], **{name: band(row[name], row[f"{name}_std"]) for name in MEASURES}} for row in table
    }
    file = Path(__file__).parents[1] / "tests" / "reference.json"
    file.write_text(json.dumps(reference, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
