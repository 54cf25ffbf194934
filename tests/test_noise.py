"""What noise costs: differences with one variance for all rows."""

from pathlib import Path

import noise

CLEAN = {"a": {"score": [[0, 1], [0, 3]]}, "b": {"score": [[0, 2], [0, 4]]}, "c": {"score": [[0, 7]]}}
NOISY = {"a": {"score": [[0, 0], [0, 2]]}, "b": {"score": [[0, 1], [0, 3]]}}


def test_a_loss_has_students_interval_with_the_variance_of_all_rows():
    """Four cells of two seeds with variance 2, t(0.975, 4) = 2.7764: ± 2.776·√2 for a row, ± 2.776 for the mean of two."""
    losses = noise.Losses(CLEAN, NOISY, "score")
    assert (losses.variance, losses.freedom) == (2.0, 4)
    assert losses.of("a") == losses.of("b") == "+1.000 (-2.926 – +4.926)"
    assert losses.of("a", "b", "c") == "+1.000 (-1.776 – +3.776)" and losses.of("c") == ""


def test_a_table_has_a_column_for_each_condition():
    curves = {row: {"scenes_strict": one["score"]} for row, one in CLEAN.items()}
    noisy = {row: {"scenes_strict": one["score"]} for row, one in NOISY.items()}
    scarce = {"a": {"scenes_strict": [[0, 9]], "reward": [[0.05, 0.25]]}}
    head, _, before, a, b, c, mean = noise.table({"clean": curves, "flip_20": noisy, "scarce": scarce}).splitlines()
    assert (
        head == "| run | without noise | flip_20 | lost | scarce |"
        and before == "| *before training* | 0.000 | 0.000 |  | 0.050 |"
    )
    assert a == "| a | 2.000 ± 1.414 | 1.000 ± 1.414 | +1.000 (-2.926 – +4.926) | 0.250 |"
    assert b.endswith("|  |") and c == "| c | 7.000 |  |  |  |" and mean.startswith("| *mean of all* | 4.000 | 1.500 |")


def test_the_page_shows_the_table_of_the_raw_numbers():
    page = Path(__file__).parents[1] / "docs" / "results.md"
    assert noise.table(noise.kept()) in page.read_text(encoding="utf-8")
