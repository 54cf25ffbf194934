"""Jobs of several ranks, forked from one process that has imported everything: python ranks.py JOBS.json

A job is {out, processes, sharded, ...} and one of
    measured: {case: settings}      what an iteration learns and communicates, see `measured`
    command: arguments              of the command line
    resume: [run, where]            train --resume in a copy of the run without its newest checkpoint
    again: run                      train --resume where it is
    drift: settings                 a run in which rank 1 changes one bit of a weight, see `drift`
    killed: settings                a run whose rank 1 is killed in iteration 4, see `killed`
Rank n writes what it found, or [exit code, stderr], to out.n

Ranks that torchrun starts have aborted now and then on a busy machine; the cause was not found.  These ranks have fewer moving
parts: no launcher, no port (they find each other by a file), and they end by os._exit after they have left the group.
"""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
from argparse import Namespace
from contextlib import redirect_stderr
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neighbor_grpo.cli import main
from neighbor_grpo.config import load_config
from neighbor_grpo.training import ranks as shared_by_ranks
from neighbor_grpo.training import trainer
from neighbor_grpo.training.ranks import divided, whole

CONFIGS = Path(__file__).parent.parent / "configs" / "accelerate"


def launched(config: str, *arguments: str) -> tuple[Namespace, dict[str, str]]:
    """What `accelerate launch --config_file configs/accelerate/<config>` understands, and the environment that it makes."""
    given = ["--config_file", str(CONFIGS / config), "--main_process_port", "0", *arguments, "train.py"]
    understood, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    return understood, prepare_multi_gpu_env(understood)


class Sharding(Accelerator):
    """By FSDP2 as gpu_8_fsdp2.yaml says; accelerate takes it up on GPUs only, so its state is told on a CPU."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        os.environ |= launched("gpu_8_fsdp2.yaml")[1]
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState._shared_state["distributed_type"] = self.state.distributed_type = DistributedType.FSDP


class Traffic(TorchDispatchMode):
    """[collective, bytes given to it] of all that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            given = args[1 if "gather" in func._opname or "scatter" in func._opname else 0]  # after the outputs
            size = sum(leaf.nbytes for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))
            self.calls.append((func._opname.strip("_"), size))
        return func(*args, **(kwargs or {}))


def measured(settings: list[str]) -> dict:
    """Of an iteration whose optimizer does not step: the gradients, figures and traffic of each update.

    The weights have been moved from their start, where half of a LoRA's gradients are zero.
    """
    run = trainer.Trainer(load_config(None, settings))
    learner, generator = run.learner, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in learner.weights.values():
            weight.add_(divided(0.02 * torch.randn(weight.shape, generator=generator), weight))
    found, step = {"gradients": [], "figures": [], "traffic": []}, learner.step
    learner.optimizer.step = lambda: found["gradients"].append(
        {name: whole(weight.grad).clone() for name, weight in learner.weights.items()}
    )

    def watched(*given):
        with Traffic() as traffic:
            taken = step(*given)
        found["figures"].append({**taken.figures, "rows/trained": taken.trained, "rows/frozen": taken.frozen})
        found["traffic"].append(traffic.calls)
        return taken

    learner.step = watched
    run._iteration(0)
    assert all(weight.requires_grad for weight in learner.weights.values())  # or the average would follow, not average
    return found


def command(arguments: list[str]) -> tuple[int, str]:
    with redirect_stderr(io.StringIO()) as said:
        return main(arguments), said.getvalue()


def drift(settings: list[str]) -> tuple[str, str]:
    """The weight that rank 1 changes by a bit after the fourth optimizer step, and the error that ends the run."""
    run = trainer.Trainer(load_config(None, settings))
    learner, step = run.learner, run.learner.step
    name = sorted(learner.weights)[3]

    def drifting(*given):
        figures = step(*given)
        if learner.updates == 4 and run.parts.accelerator.process_index == 1:
            learner.weights[name].data.view(-1)[0] *= 1 + 2**-22
        return figures

    learner.step = drifting
    try:
        run.run()
    except trainer.TrainingError as error:
        return name, str(error)
    return name, ""


def killed(settings: list[str]) -> str:
    """What the other rank ends with when rank 1 is killed (SIGKILL) in an update."""
    run = trainer.Trainer(load_config(None, settings))
    learner, step = run.learner, run.learner.step

    def dying(*given):
        if run.done == 3 and run.parts.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*given)

    learner.step = dying
    try:
        run.run()
    except Exception as error:
        return str(error)
    return ""


def work(job: dict, rank: int) -> None:
    if (n := job["processes"]) > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
        os.environ |= {name: str(value) for name, value in ranks.items()}
        dist.init_process_group("gloo", init_method=f"file://{job['out']}.store", rank=rank, world_size=n)
    if job["sharded"]:
        shared_by_ranks.Accelerator = Sharding
    if "measured" in job:
        found = {case: measured(settings) for case, settings in job["measured"].items()}
    elif "drift" in job:
        found = drift(job["drift"])
    elif "killed" in job:
        torch.save(killed(job["killed"]), f"{job['out']}.{rank}")
        os._exit(0)  # its group cannot be left any more
    else:
        found = command(job["command"])
    torch.save(found, f"{job['out']}.{rank}")
    if dist.is_initialized():  # a command has left its group itself
        dist.destroy_process_group()


def run(job: dict) -> None:
    if "resume" in job:
        whole_run, where = job["resume"]
        shutil.copytree(whole_run, where)
        shutil.rmtree(max(Path(where, "checkpoints").iterdir()))
        job["command"] = ["train", "--resume", where]
    if "again" in job:
        job["command"] = ["train", "--resume", job["again"]]
    ranks = [multiprocessing.get_context("fork").Process(target=work, args=(job, n)) for n in range(job["processes"])]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    allowed = (0, -signal.SIGKILL) if "killed" in job else (0,)
    if codes := [rank.exitcode for rank in ranks if rank.exitcode not in allowed]:
        raise SystemExit(f"a rank of {job['out']} ended with {codes[0]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(Path(sys.argv[1]).read_text()).values():  # nothing is computed here: ranks cannot use its threads
        run(each)
