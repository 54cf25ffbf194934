"""The command `plan`: memory and time of a configuration."""

import argparse

from neighbor_grpo.commands.options import Commands, configuration, configuration_options, count, number
from neighbor_grpo.config.names import to_be_written
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError


def add(commands: Commands) -> None:
    """Add the command."""
    plan = commands.add_parser(
        "plan",
        help="estimate the memory and time of a configuration, without loading weights",
        description="Estimate counts, memory and time of a run, without reading weights. A run that does not fit ends with "
        "exit code 2 and the keys to change. The memory is that of tensors: the GPU's context, workspaces of its libraries, "
        "fragmentation and rewards on the device need more.",
    )
    configuration_options(plan)
    plan.add_argument(
        "--memory", type=number(float, 0, above=True), metavar="GB", help="memory of a GPU (10^9 bytes; default: this device's)"
    )
    plan.add_argument(
        "--tflops", type=number(float, 0, above=True), metavar="N", help="rate of its matrix products (default: measured here)"
    )
    plan.add_argument(
        "--processes", type=count, default=1, metavar="N", help="processes, each with a device and a share of the prompts"
    )
    plan.add_argument(
        "--fsdp2",
        action="store_true",
        help="divide weights, gradients and optimizer states over the processes; temporary all-gathers are not counted",
    )
    plan.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the plan; raise UserError where it does not fit."""
    config = configuration(arguments, prompts=False)
    processes, prompts = arguments.processes, config.prompts.per_iteration
    if prompts % processes:
        raise UserError(f"prompts.per_iteration ({prompts}) must be a multiple of --processes ({processes})")
    import torch

    from neighbor_grpo.models.devices import pick_device, pick_dtype
    from neighbor_grpo.planning.estimate import estimate
    from neighbor_grpo.planning.fit import refuse
    from neighbor_grpo.planning.machine import matrix_rate, memory_of
    from neighbor_grpo.planning.plan import plan

    elsewhere = not torch.cuda.is_available() and (
        config.device == "cuda" or (config.device == "auto" and arguments.memory is not None)
    )
    device = torch.device("cuda") if elsewhere else pick_device(config.device)
    estimated = estimate(config, device.type, processes, arguments.fsdp2)
    limit = arguments.memory and arguments.memory * 1e9
    rate = arguments.tflops and arguments.tflops * 1e12
    if not elsewhere:
        limit = limit or memory_of(device)
        rate = rate or matrix_rate(device, pick_dtype(config.model.dtype, device))
    say("\n".join(plan(config).lines(config, processes, estimated, rate)))
    for key in to_be_written(config):
        say(f"prompts     {key}: the preset's file does not exist yet: give {key}=FILE, or write it before you train")
    if limit:
        refuse(config, estimated, device.type, limit, processes, arguments.fsdp2)
