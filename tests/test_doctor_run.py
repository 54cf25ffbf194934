"""What the doctor says about runs whose files are made by hand."""

import json

import pytest
import torch
from doctor_cases import evaluation, run_of, written
from safetensors.torch import save_file

from neighbor_grpo.cli import main
from neighbor_grpo.run.record import end
from neighbor_grpo.training.doctor.after import findings_after


def bad(run) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings_after(run) if finding.verdict in ("warning", "error")}


def test_a_healthy_run_has_no_finding(tmp_path):
    assert bad(written(tmp_path, run_of())) == {}


FLAT = {"spread__scenes": 0.0, "flat_groups__scenes": 8, "grad_norm": 0.0}
CASES = {
    "spread": {"lines": run_of(**FLAT)},
    "reward_range": {"lines": run_of(evaluation(0.5), evaluation(0.5, eval_spread__scenes=0), reward__scenes=0.5, **FLAT)},
    "noise_floor": {"lines": run_of(ratio__noise_floor=3e-4)},
    "clipped": {"lines": run_of(ratio__clipped=0.6)},
    "frozen": {"lines": run_of(grad_norm=0.0)},
    "rate_low": {"lines": run_of(evaluation(0.12)), "moved": 0.0},
    "rate_high": {"lines": run_of(evaluation(0.01), ratio__clipped=0.5)},
    "reward_falls": {"lines": run_of(evaluation(0.05))},
    "hacking": {"lines": run_of(evaluation(0.2, strict=0.2))},
    "drift": {"lines": run_of(evaluation(0.14, eval__diversity=0.05))},
    "throughput": {"lines": run_of(time__reward=lambda n: 0.1 * n**2)},
    "reward_noise": {"lines": run_of(evaluation(0.14)), "moved": 0.0},
    "scorer_failures": {"lines": run_of(failed__scenes=4)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_named(name, tmp_path):
    assert name in bad(written(tmp_path, **CASES[name]))


def test_a_negative_weight_lowers_the_reward(tmp_path):
    run = written(tmp_path, run_of(evaluation(0.05)), reward={"train": {"scenes": -1.0}})
    assert bad(run)["reward_falls"] == "error"


def test_hacking_names_the_measure_and_its_iteration(tmp_path):
    lines = run_of(evaluation(0.2, strict=0.2))
    lines[10] |= evaluation(0.13, strict=0.49)
    lines[20] |= evaluation(0.16, strict=0.3)
    found = next(f for f in findings_after(written(tmp_path, lines)) if f.name == "hacking")
    assert "scenes_strict" in found.text and "iteration 20" in found.text and found.value == 0.2


def test_failures_are_counted_since_their_iteration(tmp_path):
    run = written(tmp_path, run_of(), finished=False)
    lines = [{"iteration": 12, "reward": "scenes", "prompt": "x", "reason": "server gone"}] * 48
    (run / "failures.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = next(f for f in findings_after(run) if f.name == "scorer_failures")
    assert (found.verdict, found.value) == ("error", 0.5) and "iteration 12" in found.text and "server gone" in found.text


def test_weights_that_stay_are_named(tmp_path):
    run = written(tmp_path, run_of())
    for n, value in ((20, 1.0), (30, 2.0)):
        folder = run / "checkpoints" / f"{n:06d}"
        folder.mkdir(parents=True)
        weights = {f"block.{k}": torch.full((2, 2), value if k else 1.0) for k in range(4)}
        save_file(weights, folder / "weights.safetensors")
    found = next(f for f in findings_after(run) if f.name == "frozen")
    assert (found.verdict, found.value) == ("warning", 0.25) and "block.0" in found.text


def test_a_run_that_has_just_begun_or_diverged(tmp_path):
    run = written(tmp_path, run_of()[:1], finished=False)
    assert bad(run) == {}
    end(run, "diverged")
    assert bad(run) == {"diverged": "error"}


def test_exit_codes_and_json(tmp_path, capsys):
    run = written(tmp_path, run_of(ratio__clipped=0.6))
    assert main(["doctor", str(run), "--json", str(tmp_path / "out.json")]) == 1
    assert "clipped" in capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text())
    (found,) = [f for f in record["findings"] if f["verdict"] == "warning"]
    assert (record["exit_code"], found["name"], found["value"], found["threshold"]) == (1, "clipped", 0.6, 0.375)
    assert found["remedy"] and found["link"].endswith("#clipped")
    end(run, "diverged")
    assert main(["doctor", str(run), "--json", "-"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["exit_code"] == 3 and "diverged" in printed.err


def test_mistakes(tmp_path, capsys):
    run = written(tmp_path, run_of())
    assert main(["doctor", str(run), "iterations=3"]) == 2
    assert main(["doctor", str(tmp_path)]) == 2 and "config.yaml" in capsys.readouterr().err
    assert main(["doctor", "optimizer.rate=3"]) == 2
