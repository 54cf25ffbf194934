"""Comparisons trained to their end: what is run, resumed and reported."""

import base64
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import yaml
from browser import PHONE, axe
from comparisons import SMALL, command, compare, comparison

from neighbor_grpo.cli import main
from neighbor_grpo.compare.settings import read_comparison
from neighbor_grpo.run import files


def lines_of(out):
    return {
        str(run.relative_to(out)): [
            {key: value for key, value in line.items() if not key.startswith(("time/", "mfu/"))}
            for line in files.read_metrics(run)
        ]
        for run in sorted(out.glob("*/*/"))
        if (run / "metrics.jsonl").exists()
    }


@pytest.fixture(scope="module")
def whole(tiny_flux, tmp_path_factory):
    """The comparison with a grid of two rates, uninterrupted."""
    tmp = tmp_path_factory.mktemp("whole")
    assert compare(comparison(tmp, tiny_flux, tune={"lr": [1e-3, 3e-3], "extend": 0, "seed": 7})) == 0
    return tmp / "out"


def test_the_report_holds_the_numbers_of_the_runs(whole):
    with (whole / "table.csv").open() as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    for name, nfe_old, nfe_theta in (
        ("neighbor", 3, 1),
        ("dance", (1 + 2 * 4) / 4, 2 * (1 + 2) / 4),
    ):
        last = [files.read_metrics(whole / name / f"seed-{seed}")[-1] for seed in (0, 1)]
        reward = next(key for key in last[0] if key.startswith("eval/") and "brightness" in key)
        for key, source in (("reward", reward), ("diversity", "eval/diversity")):
            values = [line[source] for line in last]
            assert float(table[name][key]) == pytest.approx(np.mean(values))
            assert float(table[name][f"{key}_std"]) == pytest.approx(np.std(values, ddof=1))
        assert float(table[name]["nfe_old"]) == nfe_old and float(table[name]["nfe_theta"]) == nfe_theta
        assert float(table[name]["evaluations"]) == 3 * 4 * (nfe_old + 3 * nfe_theta)
        assert float(table[name]["iterations"]) == 3
    results = json.loads((whole / "results.json").read_text())
    assert np.shape(results["curves"]["dance"]["reward"]) == (2, 4)  # two seeds, before and after each of three iterations
    markdown = (whole / "table.md").read_text()
    assert all(name in markdown for name in ("neighbor", "dance", "NFE_θ", "Cost to reach"))


def test_runs_that_differ_in_method_rate_and_seed_share_their_evaluation_before_training(tiny_flux, tmp_path):
    """Each of the four runs draws 4 pictures after training, and one of each group of conditions 4 before it."""
    file = comparison(tmp_path, tiny_flux, budget={"iterations": 1}, points=1)
    values = yaml.safe_load(file.read_text())
    (tmp_path / "reward.py").write_text(
        "def brightness(images, prompts, metadata):\n"
        f"    open({str(tmp_path / 'count')!r}, 'a').write('x' * len(prompts))\n"
        "    return images.mean((1, 2, 3))\n"
    )
    assert compare(file) == 0
    trained, drawn = 4 * 4, len((tmp_path / "count").read_text())
    assert drawn == trained + 4 + 4 * 4
    alone = {"iterations": 1, "run_dir": str(tmp_path / "alone"), "method": SMALL["dance"], "seed": 9}
    shared = files.read_config(tmp_path / "out" / "dance" / "seed-1").evaluate.num_steps
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump({**values["base"], **alone}))
    assert main(["train", str(tmp_path / "alone.yaml"), f"evaluate.num_steps={shared}"]) == 0
    figures = [
        {key: value for key, value in files.read_metrics(run)[0].items() if not key.startswith("time/")}
        for run in (tmp_path / "alone", *sorted((tmp_path / "out").glob("*/seed-*")))
    ]
    assert len(figures) == 5 and all(one == figures[0] for one in figures)
    pictures = [sorted((run / "samples").rglob("*.png")) for run in (tmp_path / "alone", tmp_path / "out" / "dance" / "seed-1")]
    assert [one.read_bytes() for one in pictures[0]][:4] == [one.read_bytes() for one in pictures[1]][:4]


def test_the_page_is_self_contained_and_has_every_picture_once(whole):
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 2 * 2  # before, two methods; two prompts, two seeds
    assert not re.search(r"(src|href)\s*=\s*[\"']?http|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert {"results.json", "table.csv", "table.md"} <= {path.name for path in whole.iterdir()}


def test_the_curves_of_the_page_are_those_of_the_results(whole):
    found = re.search(r"Object\.entries\((\{.*\})\)\) drawCharts", (whole / "report.html").read_text())
    charts, curves = json.loads(found[1]), json.loads((whole / "results.json").read_text())["curves"]
    assert set(charts) == {f"curves-{cost}" for cost in ("iterations", "evaluations", "pictures", "seconds")}
    for place, panels in charts.items():
        assert {panel["title"] for panel in panels} >= {"reward", "diversity"}
        for panel in panels:
            for line in panel["lines"]:
                if line["label"] in curves:
                    check_line(line, curves[line["label"]], panel["title"], place.removeprefix("curves-"))


def check_line(line, curves, name, cost):
    mean, std = np.mean(curves[name], 0), np.std(curves[name], 0, ddof=1)
    assert line["x"] == pytest.approx(np.mean(curves[cost], 0), rel=1e-5) and line["y"] == pytest.approx(mean, rel=1e-5)
    assert line["low"] == pytest.approx(mean - std, rel=1e-5) and line["high"] == pytest.approx(mean + std, rel=1e-5)


def test_the_command_of_the_page_makes_the_same_comparison(whole):
    command = shlex.split(re.search(r'class="command" tabindex="0">(.*?)</pre>', (whole / "report.html").read_text())[1])
    again, entries = read_comparison(command[2], command[3:])
    first, same = read_comparison(whole.parent / "compare.yaml")
    assert command[:2] == ["neighbor-grpo", "compare"] and again == first.model_copy(update={"run_dir": f"{whole}-again"})
    assert entries == same


def test_the_rate_is_chosen_on_the_other_seed(whole):
    for name in SMALL:
        tried = {lr: files.read_metrics(whole / name / f"lr-{lr}")[-1] for lr in ("0.001", "0.003")}
        reward = next(key for key in tried["0.001"] if key.startswith("eval/") and "brightness" in key)
        best = max(tried, key=lambda lr: tried[lr][reward])
        for seed in (0, 1):
            assert files.read_config(whole / name / f"seed-{seed}").optimizer.lr == float(best)
        assert all(files.read_config(whole / name / f"lr-{lr}").seed == 7 for lr in tried)


def test_finished_runs_are_not_run_again(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/*/metrics.jsonl")}
    assert compare(whole.parent / "compare.yaml") == 0
    said = capsys.readouterr().out
    assert said.startswith("neighbor, dance: seeds 0, 1, in ") and "begins" not in said and len(before) == 8
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("*/*/metrics.jsonl")}


def has_begun(line):
    return line.exists() and len(line.read_text().splitlines()) > 1


@pytest.fixture
def stopped(tiny_flux, tmp_path):
    """The file of the same comparison elsewhere, and the metrics of the run in which it is to be stopped."""
    file = comparison(tmp_path, tiny_flux, tune={"lr": [1e-3, 3e-3], "extend": 0, "seed": 7})
    return file, tmp_path / "out" / "neighbor" / "seed-0" / "metrics.jsonl"


def test_a_stopped_comparison_resumes_to_the_same_metrics(stopped, whole, capsys):
    file, at = stopped

    def interrupt():
        while not has_begun(at):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert compare(file) == 130
    assert "the same command" in capsys.readouterr().err
    resumes(file, at, whole, capsys)


@pytest.mark.slow
def test_a_killed_comparison_resumes_to_the_same_metrics(stopped, whole, capsys):
    file, at = stopped
    process = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not has_begun(at):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    resumes(file, at, whole, capsys)


def resumes(file, at, whole, capsys):
    assert compare(file) == 0
    assert f"{at.parent}: begins" not in capsys.readouterr().out

    def plain(out):  # the reward's name holds the directory
        return json.loads(json.dumps(lines_of(out)).replace(str(out.parent), ""))

    assert plain(file.parent / "out") == plain(whole)


@pytest.mark.slow
def test_each_try_spends_its_share_of_the_budget(tiny_flux, tmp_path):
    file = comparison(tmp_path, tiny_flux, tune={"lr": [1e-3], "seed": 7, "share": 0.5}, seeds=[0], budget={"iterations": 5})
    assert compare(file) == 0
    ends = {name: files.read_metrics(tmp_path / "out" / "dance" / name)[-1]["iteration"] for name in ("lr-0.001", "seed-0")}
    assert ends == {"lr-0.001": 3, "seed-0": 5}


def test_parts_divide_the_methods(tiny_flux, tmp_path):
    file = comparison(tmp_path, tiny_flux, seeds=[0])
    assert compare(file, "--part", "1/2") == 0 and not (tmp_path / "out" / "dance").exists()
    assert "Not finished: dance (0 of 1 seeds)" in (tmp_path / "out" / "report.html").read_text()
    done = files.read_metrics(tmp_path / "out" / "neighbor" / "seed-0")
    assert compare(file, "--part", "2/2") == 0 and done == files.read_metrics(tmp_path / "out" / "neighbor" / "seed-0")
    assert "Not finished" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_budget_of_seconds_ends_the_run(tiny_flux, tmp_path):
    base = yaml.safe_load(comparison(tmp_path, tiny_flux).read_text())["base"]
    base["evaluate"]["every"] = 5
    file = comparison(tmp_path, tiny_flux, seeds=[0], budget={"seconds": 0.5}, base=base)
    assert compare(file) == 0
    for name in SMALL:
        spent = [
            sum(line.get(f"time/{phase}", 0) for phase in ("encode", "rollout", "decode", "reward", "update"))
            for line in files.read_metrics(tmp_path / "out" / name / "seed-0")
        ]
        assert sum(spent) >= 0.5 > sum(spent[:-1])


def test_a_changed_comparison_refuses_runs_with_other_settings(whole, capsys):
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    for change in ("budget.iterations=4", "base.optimizer.weight_decay=0.5"):
        assert compare(whole.parent / "compare.yaml", change) == 2
        assert "was made with other settings: choose another run_dir" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b"])
def test_a_part_that_does_not_exist_is_refused(tmp_path, part, capsys):
    assert compare(comparison(tmp_path), "--part", part) == 2
    assert "--part takes K/N" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_grid_grows_until_the_best_rate_is_inside(tiny_flux, tmp_path):
    """The reward cannot be reached, and brightness rises with the rate, so the highest rate is always the best."""
    methods = [{"run": "neighbor", "method": SMALL["neighbor"]}]
    file = comparison(tmp_path, tiny_flux, methods, tune={"lr": [1e-4, 1e-3], "extend": 1, "seed": 7}, seeds=[0])
    assert compare(file) == 0
    tried = sorted(path.name for path in (tmp_path / "out" / "neighbor").glob("lr-*"))
    assert len(tried) == 3 and ("lr-0.01" in tried or "lr-1e-05" in tried)


def test_a_try_ends_where_it_leaves_the_bounds_and_a_reported_seed_does_not(tiny_flux, tmp_path):
    """The only diversity within the bounds is that before training, and training changes it at once."""
    methods = [{"run": "neighbor", "method": SMALL["neighbor"]}]
    bounds = {"diversity": {"fall": 0.0, "times": 1.0}}
    file = comparison(tmp_path, tiny_flux, methods, tune={"lr": [1e-2], "seed": 7}, seeds=[0], bounds=bounds)
    assert compare(file) == 0
    ends = {name: files.read_metrics(tmp_path / "out" / "neighbor" / name)[-1]["iteration"] for name in ("lr-0.01", "seed-0")}
    assert ends == {"lr-0.01": 1, "seed-0": 3} and files.finished(tmp_path / "out" / "neighbor" / "lr-0.01")


# ---------------------------------------------------------------- the page in a browser (last: Playwright keeps an event loop)


def test_the_page_shows_the_numbers_under_the_cursor_and_a_slider_between_any_two_methods(whole, page):
    curves = json.loads((whole / "results.json").read_text())["curves"]
    page.goto((whole / "report.html").as_uri())
    page.locator("#costs input[value=iterations]").check()
    assert [page.locator(f"#curves-{cost}").is_visible() for cost in ("iterations", "evaluations")] == [True, False]
    chart = page.locator("#curves-iterations .u-over").first
    chart.hover(position={"x": chart.bounding_box()["width"] / 3, "y": 9})
    said = page.locator("#curves-iterations .u-legend").first.inner_text()
    for name in SMALL:
        assert float(f"{np.mean(curves[name]['reward'], 0)[1]:.4g}") in [float(n) for n in re.findall(r"[\d.]+", said)]
    left, right = page.locator("#between select").all()
    left.select_option("dance"), right.select_option("neighbor")
    row = page.locator(".noise").last
    shown = [picture.get_attribute("src") for picture in row.locator(".pair img").all()]
    files = [whole / name / "seed-0" / "samples" / "000003" / "01-1.png" for name in ("dance", "neighbor")]
    assert [base64.b64decode(src.partition(",")[2]) for src in shown] == [file.read_bytes() for file in files]
    row.get_by_role("slider").press("ArrowRight")
    assert row.locator(".stack").evaluate("stack => stack.style.getPropertyValue('--at')") == "51%"
    page.get_by_role("searchbox").fill("STARS")
    assert page.locator(".prompt:visible h3").all_inner_texts() == ["two blue stars"]
    assert axe(page) == []


def test_the_page_needs_no_script_and_fits_a_phone(whole, new_page):
    plain = new_page(viewport=PHONE, java_script_enabled=False)
    plain.goto((whole / "report.html").as_uri())
    assert plain.locator(".noise img").count() == 12 and plain.locator(".drawing").count() > 1
    phone = new_page(viewport=PHONE)
    phone.goto((whole / "report.html").as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
