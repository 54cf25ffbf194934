"""Time of an iteration relative to the time of its bare model calls, measured in turn in one process.

    python benchmarks/overhead.py [method.name=dance_grpo] [key=value ...] [--iterations 10] [--families flux sd3 wan]

Bare calls are the forwards of the rollout, the decodes, the forward-backwards of the update and the forwards of reference and
lagging copies: as many rows as the method runs, on random tensors, each at the best of several batch sizes.  The time of the
reward is left out of the iteration and reported separately.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from small import BUILT

from neighbor_grpo.config import load_config
from neighbor_grpo.console import silence_libraries
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.planning.work import work_of
from neighbor_grpo.training.trainer import Trainer


def chunks(total: int, size: int) -> list[int]:
    """Divide rows into batches."""
    return [min(size, total - start) for start in range(0, total, size)]


def work(method: Method, prompts: int, iteration: int) -> tuple[list[int], list[int]]:
    """Count the rows of each model call of the rollout and of each optimizer step, on latents of one number."""
    forwards, rng = [], torch.Generator().manual_seed(iteration)

    def still(x: torch.Tensor, t: float) -> torch.Tensor:
        forwards.append(x.shape[0] * x.shape[1])
        return torch.zeros_like(x)

    times = torch.linspace(1, 0, method.num_steps + 1).tolist()
    here = Iteration(iteration)
    tree = method.rollout(still, lambda n: torch.randn(prompts, n, 1, generator=rng), times, here)
    rewards = torch.randn(prompts, method.group_size, generator=rng)
    updates = method.updates(tree, method.credit(tree, rewards, rewards), [rng] * prompts, here)
    return forwards, [len(rows) * rows.states for rows in updates]


def clock(function: Callable[[], object]) -> float:
    """Return the seconds of a call, with what it started on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(iterations: int, overrides: list[str], title: str) -> None:
    """Measure one family and print its row."""
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(load_config(None, [f"run_dir={directory}/run", f"iterations={iterations + 1}", *overrides]))
        method, model, p = trainer.config.method, trainer.parts.model, trainer.config.prompts.per_iteration
        samples = p * method.group_size
        cond = model.encode([trainer.parts.prompts[0].text])
        x = model.noise(samples, torch.Generator().manual_seed(0))

        def rows(n: int) -> tuple[torch.Tensor, Cond]:
            return x[:1].expand(n, *x.shape[1:]).contiguous(), cond.take(torch.zeros(n, dtype=torch.long))

        def forward(total: int, size: int) -> None:
            with torch.no_grad():
                for n in chunks(total, size):
                    rows_x, rows_cond = rows(n)
                    model.velocity(rows_x, 0.5, rows_cond)

        def backward(total: int, size: int) -> None:
            for n in chunks(total, size):
                rows_x, rows_cond = rows(n)
                model.velocity(rows_x, 0.5, rows_cond).sum().backward()
            trainer.learner.optimizer.zero_grad()

        def decode(size: int) -> None:
            model.decode(x, size)

        per_update = max(work(method, p, 0)[1])
        sizes = [size for size in (4, 8, 16, 32, 64, 128, 256) if size < 2 * samples]

        def best(function: Callable[..., None], *args: int) -> int:
            return min(sizes, key=lambda size: min(clock(lambda: function(*args, size)) for _ in range(3)))

        at = {"forward": best(forward, samples), "decode": best(decode), "backward": best(backward, per_update)}
        print("best rows:", at, "configured:", trainer.config.batch)
        whole, bare, rewards = [], [], []
        for n in range(iterations + 1):
            seconds = clock(lambda n=n: trainer._iteration(n))
            forwards, updates = work(method, p, n)
            floor = sum(clock(lambda total=total: forward(total, at["forward"])) for total in forwards)
            floor += clock(lambda: decode(at["decode"]))
            floor += sum(clock(lambda total=total: backward(total, at["backward"])) for total in updates)
            frozen = p * work_of(trainer.config, n).frozen
            floor += clock(lambda total=frozen: forward(total, at["forward"]))
            if n:  # the first warms up
                whole.append(seconds - trainer.parts.phases.seconds["reward"])
                bare.append(floor)
                rewards.append(trainer.parts.phases.seconds["reward"])
        ratios = sorted(a / b for a, b in zip(whole, bare, strict=True))
        medians = [statistics.median(seconds) for seconds in (whole, bare, rewards)]
        print(
            f"{title}, {method.name}: iteration {medians[0]:.3f} s, bare model calls {medians[1]:.3f} s, "
            f"reward {medians[2]:.3f} s"
        )
        print(
            f"overhead: median {statistics.median(ratios):.3f}, min {ratios[0]:.3f}, max {ratios[-1]:.3f} of {len(ratios)}",
            flush=True,
        )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--families", nargs="+", default=["flux"], choices=["flux", *BUILT], help="flux is the bundled model")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    silence_libraries()
    for name in arguments.families:
        with tempfile.TemporaryDirectory() as place:
            own = []
            if name in BUILT:
                build, own = BUILT[name]
                build().save_pretrained(place)
                own = [f"model.path={place}", *own, "reward=jpeg_compressibility", "watch=[jpeg_size]"]
            measure(arguments.iterations, [*own, *arguments.overrides], name)


if __name__ == "__main__":
    main()
