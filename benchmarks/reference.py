"""The bands that a later run of the shipped configurations must end in, from a finished comparison.

    neighbor-grpo compare scenes/compare
    python benchmarks/reference.py runs/compare/scenes        writes tests/reference.json
    pytest -m slow                                            trains every row once more and holds the bands

A band is the mean over seeds ± four standard deviations, five percent of the mean at the least.
"""

import json
import sys
from pathlib import Path

MEASURES = ("scenes", "scenes_strict", "scenes_distance", "diversity")


def band(mean: float, std: float) -> list[float]:
    half = max(4 * std, 0.05 * abs(mean))
    return [round(mean - half, 4), round(mean + half, 4)]


def main() -> None:
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
