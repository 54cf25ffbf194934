"""How ranks are launched: what accelerate's configurations mean, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from ranks import CONFIGS, launched

from neighbor_grpo.errors import UserError
from neighbor_grpo.training.ranks import accelerator_on, slots_of_rank


@pytest.mark.parametrize(
    ("kind", "environment", "message"),
    [
        (DistributedType.DEEPSPEED, {}, "FSDP2 instead"),
        (DistributedType.MULTI_CPU, {"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
    ],
)
def test_what_cannot_be_done_is_refused(monkeypatch, kind, environment, message):
    """As accelerate's state is under such a launch; version 1 of FSDP, too, is not FSDP2."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        slots_of_rank(4, SimpleNamespace(num_processes=2, process_index=1, distributed_type=kind, is_fsdp2=False))


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.iterdir()))
def test_accelerate_understands_the_configurations(file):
    """As its launcher does: numbers of processes and machines, and what FSDP's plugin reads in the environment."""
    machines = ("--machine_rank", "1", "--main_process_ip", "node-1") if "32" in file else ()
    understood, environment = launched(file, *machines)
    size = int(file.split("_")[1].removesuffix(".yaml"))
    assert (understood.num_processes, understood.num_machines) == (size, max(1, size // 8))
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    keys = yaml.safe_load((CONFIGS / file).read_text()).get("fsdp_config", {})
    assert bool(keys) == understood.use_fsdp == ("fsdp2" in file) and understood.multi_gpu == ("fsdp2" not in file and size > 1)
    if keys:
        read = ("FSDP_VERSION", "FSDP_AUTO_WRAP_POLICY", "FSDP_RESHARD_AFTER_FORWARD", "FSDP_CPU_RAM_EFFICIENT_LOADING")
        assert [environment[name] for name in read] == ["2", "TRANSFORMER_BASED_WRAP", "true", "false"]
        assert all(f"{key}".upper() in environment for key in keys)


SLURM = Path(__file__).parent.parent / "configs" / "slurm"


def test_the_slurm_scripts_are_sound():
    for script in SLURM.glob("*.sh"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0


# Stand-ins for the launcher, whose child is a rank that saves and leaves when it is warned, and for the scheduler.
RANK = """import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def leave(*_):
    (run / "config.yaml").touch()
    sys.exit(128 + signal.SIGUSR1)
signal.signal(signal.SIGUSR1, leave)
(run / "begun").touch()
time.sleep(60 * (not (run / "config.yaml").exists()))
"""
STAND_INS = {
    "accelerate": 'echo "$@" >> "$PLACE/launched"; "$PYTHON" "$PLACE/rank.py" "$PLACE"; exit $?',
    "scontrol": 'echo "$@" >> "$PLACE/queued"',
}


def test_a_job_that_is_warned_of_its_end_is_queued_again_and_resumes(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    for name, does in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PLACE": str(tmp_path), "PYTHON": sys.executable, "SLURM_JOB_ID": "42"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    job = ["bash", str(SLURM / "requeue.sh"), str(tmp_path), "mine.yaml", "iterations=9"]
    first = subprocess.Popen(job, env=environment)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(30) == 128 + signal.SIGUSR1
    assert (tmp_path / "queued").read_text() == "requeue 42\n"
    assert subprocess.run(job, env=environment, timeout=30).returncode == 0  # not warned: it ends by itself
    launched = (tmp_path / "launched").read_text().splitlines()
    assert launched[0].endswith(f"train run_dir={tmp_path} mine.yaml iterations=9")
    assert launched[1].endswith(f"train --resume {tmp_path}")
    assert (tmp_path / "queued").read_text() == "requeue 42\n"


def test_a_process_that_has_trained_on_one_device_refuses_another():
    assert accelerator_on(torch.device("cpu")).device.type == "cpu"
    with pytest.raises(UserError, match="new process for device=cuda"):
        accelerator_on(torch.device("cuda"))
