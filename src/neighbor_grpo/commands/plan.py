"""neighbor-grpo plan"""

import argparse

from neighbor_grpo.commands.options import configuration
from neighbor_grpo.errors import UserError


def add(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what a configuration takes, before weights are loaded",
        description="Counts, memory and time of a configuration, from the configurations of its model: weights are not read. "
        "Where it does not fit the exit code is 2, and what to change is said. Memory is that of tensors: a GPU's context, "
        "workspaces of its libraries, fragmentation and rewards on the device come on top.",
    )
    plan.add_argument(
        "config", nargs="*", metavar="CONFIG | key=value", help="YAML files, each over the one before, then changes"
    )
    plan.add_argument("--memory", type=float, metavar="GB", help="of a GPU (10^9 bytes; default: this device's)")
    plan.add_argument("--tflops", type=float, metavar="N", help="of the device's matrix products (default: measured, if here)")
    plan.add_argument("--processes", type=int, default=1, metavar="N", help="each with a device and a share of the prompts")
    plan.add_argument(
        "--fsdp2",
        action="store_true",
        help="which divides weights, gradients and optimizer over the processes; what a rank "
        "gathers of the others' for a moment is not counted",
    )
    plan.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from neighbor_grpo.models.devices import pick_device, pick_dtype
    from neighbor_grpo.planning.estimate import estimate
    from neighbor_grpo.planning.fit import refuse
    from neighbor_grpo.planning.machine import matrix_rate, memory_of
    from neighbor_grpo.planning.plan import plan

    config = configuration(arguments.config)
    processes, prompts = arguments.processes, config.prompts.per_iteration
    if processes < 1 or prompts % processes:
        raise UserError(f"prompts.per_iteration ({prompts}) must be a multiple of --processes ({processes})")
    elsewhere = not torch.cuda.is_available() and (
        config.device == "cuda" or (config.device == "auto" and arguments.memory is not None)
    )
    device = torch.device("cuda") if elsewhere else pick_device(config.device)
    held = estimate(config, device.type, processes, arguments.fsdp2)
    limit = arguments.memory and arguments.memory * 1e9
    rate = arguments.tflops and arguments.tflops * 1e12
    if not elsewhere:
        limit = limit or memory_of(device)
        rate = rate or matrix_rate(device, pick_dtype(config.model.dtype, device))
    print("\n".join(plan(config).lines(config, processes, held, rate)))
    if limit:
        refuse(config, held, device.type, limit, processes, arguments.fsdp2)
