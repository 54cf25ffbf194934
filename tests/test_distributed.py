"""Several ranks make the run of one: gradients, traffic, FSDP2, checkpoints, and what happens when a rank dies."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from equal import close, equal_gradients, equal_metrics, equal_runs
from models import family_qwen_image
from runs import LOOPBACK, metrics, settings
from safetensors.torch import load_file
from test_trainer import SMALL, wait_for_line

HERE = Path(__file__).parent
EACH = ("prompts.per_iteration=4", "batch.update=3", "batch.rollout=4")  # so that no forward's batch depends on the ranks
KINDS = ("neighbor", "branch_grpo", "nft")  # the others are like one of them
CASES = {name: (SMALL[name],) for name in KINDS} | {
    "full": ("model.lora=null",),
    "kl": ("method={name: flow_grpo, group_size: 4, num_steps: 3, kl: 1.0}", "model.lora.targets=[to_q, proj_out, x_embedder]"),
    "qwen_image": (f"model.lora.targets=[{', '.join(family_qwen_image.LORA)}]", "model.height=32", "model.width=32"),
}
SETTINGS = {  # bfloat16 is slow on a CPU
    "bfloat16": ("model.dtype=bfloat16", "batch.update=1", "model.gradient_checkpointing=true"),
    "scouts": ("scouts={count: 8, steps: 2}",),
}
# Four ranks differ from two in nothing that a method can see, so they run a few cases.
BY_FOUR = ("neighbor", "branch_grpo", "qwen_image")
FEW = ("1", "2", "2 by FSDP2")
RANKS = {"1": (1, False), "2": (2, False), "4": (4, False), "2 by FSDP2": (2, True)}
SLOW = ("iterations=6", "save_every=2", "evaluate.prompts=1")
# otherwise MKL's products differ by 1e-7 with the place in memory, and a z-score of nearly equal rewards makes that 1e-4
ENVIRONMENT = os.environ | LOOPBACK | {"MKL_CBWR": "COMPATIBLE"}
BY_FSDP2 = [case for case in CASES if case not in KINDS or case in ("neighbor", "branch_grpo")]
RUNS = {"lora": (), "full": ("model.lora=null", "optimizer.lr=1e-5")}
CROSSINGS = [("lora", "1", "2 by FSDP2"), ("lora", "2 by FSDP2", "1"), ("full", "1", "2 by FSDP2")]
DIVIDED = [("lora", "2"), ("lora", "2 by FSDP2"), ("full", "2 by FSDP2")]
PROMPTS = ["a red circle", "two blue stars", "a green square", "a yellow triangle", "three red stars"]


@pytest.fixture(scope="module")
def jobs(tiny_flux, tmp_path_factory):
    """What every rank of every job found.  The workers of a test run share one start: the first makes it, others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = base / "jobs"
    with (base / "jobs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "found").is_file():
            place.mkdir()
            start(place, jobs_in(place, tiny_flux))
            (place / "found").touch()
    return found(json.loads((place / "jobs.json").read_text())) | {"place": place}


def found(todo):
    left = {name: [Path(f"{job['out']}.{n}") for n in range(job["processes"])] for name, job in todo.items()}
    return {name: [torch.load(file) for file in files if file.is_file()] for name, files in left.items()}


def jobs_in(place, tiny_flux):
    """All jobs by name, for one start of Python."""
    todo = {}
    family_qwen_image.build().save_pretrained(place / "qwen_image")

    def job(name, ranks, **what):
        todo[name] = {"out": str(place / name), "processes": RANKS[ranks][0], "sharded": RANKS[ranks][1], **what}

    def here(name):
        (place / f"in {name}").mkdir()
        return place / f"in {name}"

    asked = {}
    for case, more in CASES.items():
        asked[case] = settings(place / case if case == "qwen_image" else tiny_flux, here(case), *EACH, *more)
    for ranks in FEW:
        job(ranks, ranks, measured={case: asked[case] for case in cases_of(ranks)})
    for kind, ranks in [("lora", "1"), ("full", "1"), *DIVIDED]:
        where = here(f"{kind} on {ranks}")
        watched = ("watch=[saturation]", "evaluate.best=saturation", "evaluate.every=1")
        job(f"{kind} on {ranks}", ranks, command=["train", *settings(tiny_flux, where, *EACH, *watched, *RUNS[kind])])
    for kind, first, then in CROSSINGS:
        name = f"{kind} on {then} after {first}"
        job(name, then, resume=[str(place / f"in {kind} on {first}" / "run"), str(here(name) / "run")])
    job("uneven", "2", command=["train", *settings(tiny_flux, here("uneven"), "prompts.per_iteration=5", "device=auto")])
    job("slow", "2", command=["train", *settings(tiny_flux, here("slow"), *SLOW, function="slow")])
    for ranks, most in (("1", 0.9), ("2", 0.9), ("2", 0.0)):
        name = f"failures up to {most} on {ranks}"
        more = (f"reward.max_failed={most}", "iterations=2")
        job(name, ranks, command=["train", *settings(tiny_flux, here(name), *more, function="sometimes")])
    (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    for ranks in ("1", "2"):
        measures = ("--measure", "jpeg_compressibility", "--measure", "diversity", "--device", "cpu", "--steps", "3")
        what = ["--model", str(tiny_flux), "--prompts", str(place / "prompts.txt")]
        what += ["--out", str(place / f"evaluation on {ranks}")]
        job(f"evaluation {ranks}", ranks, command=["evaluate", *what, *measures])
    job("drift", "2", drift=settings(tiny_flux, here("drift"), "iterations=4"))
    job("killed", "2", killed=settings(tiny_flux, here("killed"), *SLOW, function="slow"))
    job("after the kill", "2", again=str(place / "in killed" / "run"))
    return todo


def start(place, todo):
    (place / "jobs.json").write_text(json.dumps(todo))
    process = subprocess.run(
        [sys.executable, HERE / "ranks.py", place / "jobs.json"], capture_output=True, text=True, timeout=1800, env=ENVIRONMENT
    )
    assert process.returncode == 0, process.stderr[-6000:]


def cases_of(ranks):
    return {"2 by FSDP2": BY_FSDP2}.get(ranks, CASES)


EQUAL = [(case, ranks) for ranks in FEW[1:] for case in cases_of(ranks)]


@pytest.mark.parametrize(("case", "ranks"), EQUAL)
def test_an_equal_global_batch_gives_equal_gradients(jobs, case, ranks):
    equal_gradients(jobs["1"][0][case], [there[case] for there in jobs[ranks]])


@pytest.mark.slow
def test_the_other_methods_and_settings_have_equal_gradients_too(tiny_flux, tmp_path):
    others = {name: settings(tiny_flux, tmp_path, *EACH, SMALL[name]) for name in SMALL if name not in KINDS}
    others |= {name: settings(tiny_flux, tmp_path, *EACH, *more) for name, more in SETTINGS.items()}
    family_qwen_image.build().save_pretrained(tmp_path / "qwen_image")
    four = {
        case: settings(tmp_path / case if case == "qwen_image" else tiny_flux, tmp_path, *EACH, *CASES[case])
        for case in BY_FOUR
    }
    asked = {"1": others | four, "2": others, "4": four, "2 by FSDP2": {"bfloat16": others["bfloat16"]}}
    todo = {
        ranks: {"out": str(tmp_path / ranks), "measured": asked[ranks], "processes": n, "sharded": sharded}
        for ranks, (n, sharded) in RANKS.items()
    }
    start(tmp_path, todo)
    jobs = found(todo)
    for name in BY_FOUR:
        equal_gradients(jobs["1"][0][name], [there[name] for there in jobs["4"]])
    for ranks, name in [("2", name) for name in others] + [("2 by FSDP2", "bfloat16")]:
        equal_gradients(jobs["1"][0][name], [there[name] for there in jobs[ranks]])


@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_step_sends_every_gradient_once(jobs, case):
    """As many bytes as there are trained weights, in one all-reduce, or by FSDP2 in a reduce-scatter for each of its groups.

    Micro-batches are several; beside the gradients go a few figures."""
    size = sum(gradient.nbytes for gradient in jobs["1"][0][case]["gradients"][0].values())
    for there in jobs["2"]:
        for (reduced, sent), (gathered, figures) in there[case]["traffic"]:
            assert (reduced, sent, gathered) == ("allreduce", size, "allgather") and figures <= 8 * 4
    for there in jobs["2 by FSDP2"] if case in BY_FSDP2 else ():
        for calls in there[case]["traffic"]:
            scattered = [sent for name, sent in calls if name == "reduce_scatter_base"]
            assert 0.9 * size < sum(scattered) < 1.01 * size  # uneven parts are padded, and what got no gradient is left out
            assert len(scattered) <= 5 and {name for name, _ in calls} <= {"reduce_scatter_base", "allgather_base", "allgather"}


def test_a_layer_whose_output_is_discarded_gets_zero(jobs):
    """Qwen-Image's last block makes a text that nobody reads; DDP would wait for its gradients."""
    for ranks in FEW:
        for gradients in jobs[ranks][0]["qwen_image"]["gradients"]:
            zero = {name.split(".lora_")[0] for name, gradient in gradients.items() if not gradient.any()}
            assert "transformer_blocks.1.attn.to_add_out" in zero <= family_qwen_image.UNUSED


@pytest.mark.parametrize(("kind", "ranks"), DIVIDED)
def test_a_run_of_two_is_the_run_of_one(jobs, kind, ranks):
    """Weights, optimizer, average, evaluations and best of it, exported."""
    one, two = (jobs["place"] / f"in {kind} on {number}" / "run" for number in ("1", ranks))
    assert [code for code, _ in jobs[f"{kind} on 1"] + jobs[f"{kind} on {ranks}"]] == [0, 0, 0]
    equal_runs(one, two)
    exported = "lora" if kind == "lora" else "transformer"
    for place in (exported, f"best/{exported}"):
        files = sorted(path.name for path in (one / place).iterdir())
        assert files == sorted(path.name for path in (two / place).iterdir())
        for name in set(files) - {"manifest.json"}:  # whose hashes tell rounding apart
            if name.endswith(".json"):
                assert (one / place / name).read_text() == (two / place / name).read_text()
            else:
                close(load_file(one / place / name), load_file(two / place / name))
    average = torch.load(two / "checkpoints" / "000003" / "state.pt", weights_only=True)["ema"]["shadow_params"]
    final = next((two / exported).glob("*.safetensors"))
    assert sorted(t.sum().item() for t in load_file(final).values()) == sorted(t.sum().item() for t in average)
    assert len({json.loads((run / "best" / "best.json").read_text())["iteration"] for run in (one, two)}) == 1


@pytest.mark.parametrize(("kind", "first", "then"), CROSSINGS)
def test_a_checkpoint_goes_on_with_other_ranks(jobs, kind, first, then):
    """One process's two divided ones, and theirs one, from after the second iteration."""
    whole_run, name = jobs["place"] / f"in {kind} on 1" / "run", f"{kind} on {then} after {first}"
    assert [code for code, _ in jobs[name]] in ([0], [0, 0]), jobs[name]
    equal_runs(whole_run, jobs["place"] / f"in {name}" / "run")


def test_two_processes_count_failures_and_stop_alike(jobs):
    (one, _), *two = (code for name in ("1", "2") for code in jobs[f"failures up to 0.9 on {name}"])
    assert (one, [code for code, _ in two]) == (0, [0, 0])
    assert all(code == 2 and "RuntimeError: no view" in said for code, said in jobs["failures up to 0.0 on 2"])
    counts = []
    for ranks in ("1", "2"):
        lines = metrics(jobs["place"] / f"in failures up to 0.9 on {ranks}" / "run")[1:]
        counts.append([value for line in lines for key, value in line.items() if key.startswith("failed/")])
    assert counts[0] == counts[1] and min(counts[0]) > 0


def test_two_processes_evaluate_what_one_does(jobs):
    one, two = (jobs["place"] / f"evaluation on {ranks}" for ranks in ("1", "2"))
    assert [code for code, _ in jobs["evaluation 1"] + jobs["evaluation 2"]] == [0, 0, 0], jobs["evaluation 2"]
    values = [json.loads((place / "result.json").read_text())["values"] for place in (one, two)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    files = sorted(two.glob("scores-*.jsonl"))
    prompts = [{json.loads(line)["prompt"] for line in file.read_text().splitlines()} for file in files]
    assert prompts == [{0, 2, 4}, {1, 3}]


def test_ranks_that_differ_by_a_bit_stop_the_run_and_the_parameter_is_named(jobs):
    name = jobs["drift"][0][0]
    for _, error in jobs["drift"]:
        assert f"{name} is not the same on rank 0 and rank 1 after 4 optimizer steps" in error
    checkpoints = jobs["place"] / "in drift" / "run" / "checkpoints"
    assert [path.name for path in sorted(checkpoints.glob("0*"))] == ["000000", "000001"]


def test_prompts_that_do_not_divide_are_one_line_on_every_rank(jobs):
    said = "neighbor-grpo: prompts.per_iteration (5) must be a multiple of the 2 processes"
    assert len(jobs["uneven"]) == 2
    assert all(code == 2 and err.startswith(said) and err.count("\n") == 1 for code, err in jobs["uneven"])


def test_a_run_whose_rank_was_killed_goes_on(jobs):
    """kill -9 in an update; what is left resumes to the metrics of the uninterrupted run, bit for bit."""
    run, whole_run = (jobs["place"] / f"in {name}" / "run" for name in ("killed", "slow"))
    assert len(jobs["killed"]) == 1 and jobs["killed"][0]  # the other rank got an error
    assert [code for code, _ in jobs["after the kill"]] == [0, 0]
    equal_metrics(run, whole_run)


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_job_down_and_the_run_goes_on(jobs, tiny_flux, tmp_path):
    """The same under torchrun, which ends the job; no library speaks through its ranks."""
    run, whole_run = tmp_path / "run", jobs["place"] / "in slow" / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "neighbor_grpo.cli"]
    arguments = settings(tiny_flux, tmp_path, *SLOW, function="slow")
    with (tmp_path / "stderr").open("w") as said:
        job = subprocess.Popen([*command, "train", *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=said)
    wait_for_line(run, 3)
    assert (tmp_path / "stderr").read_text() == ""
    os.kill(rank_of(job.pid, 1), signal.SIGKILL)
    died = time.monotonic()
    assert job.wait(60) != 0
    assert time.monotonic() - died < 60
    assert [path.name for path in sorted((run / "checkpoints").glob("0*"))] == ["000000", "000002"]
    rest = {"out": str(tmp_path / "rest"), "processes": 2, "sharded": False, "command": ["train", "--resume", str(run)]}
    start(tmp_path, {"rest": rest})
    assert [code for code, _ in found({"rest": rest})["rest"]] == [0, 0]
    equal_metrics(run, whole_run)


def rank_of(agent, rank):
    """Process of a rank that torchrun started."""
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise AssertionError("no such rank")
