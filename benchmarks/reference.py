"""Reference bands for the shipped comparisons: a later run of the same row must end inside them.

    neighbor-grpo compare scenes/bounded
    python benchmarks/reference.py scenes/bounded runs/compare/bounded    writes its part of tests/reference.json
    pytest -m slow                                                        trains every row again and checks the bands

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
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    comparison, directory = sys.argv[1:]
    table = json.loads((Path(directory) / "results.json").read_text())["table"]
    file = Path(__file__).parents[1] / "tests" / "reference.json"
    reference = json.loads(file.read_text()) | {
        comparison: {
            row["run"]: {"lr": row["lr"], **{name: band(row[name], row[f"{name}_std"]) for name in MEASURES}} for row in table
        }
    }
    file.write_text(json.dumps(reference, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
