"""How ranks are launched: what accelerate's configurations mean, and what is refused."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DistributedType
from ranks import CONFIGS, launched

from neighbor_grpo.errors import UserError
from neighbor_grpo.training.ranks import slots_of_rank


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


def test_the_slurm_script_is_sound():
    script = Path(__file__).parent.parent / "configs" / "slurm" / "two_nodes.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
