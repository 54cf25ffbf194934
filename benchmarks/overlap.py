"""Time of an iteration with a scorer that takes as long as the rollout: scored after the rollout, and during it.

    python benchmarks/overlap.py [--iterations 6] [key=value ...]

The scorer waits, as for a server or another device, and then returns the graded score of the bundled model.  No overlap can
go below the larger of two sums: encode + rollout + decode + update, and rollout and decode of the first batch + scoring +
update.  Both runs have the same seed, and their rewards and gradients are compared.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace

from neighbor_grpo.config import load_config
from neighbor_grpo.training.trainer import Trainer


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    lines, portions = {}, 1
    for overlap in ("false", "true"):
        with tempfile.TemporaryDirectory() as directory:
            own = [f"run_dir={directory}/run", f"iterations={arguments.iterations + 1}", "batch.rollout=12"]
            trainer = Trainer(load_config(None, [*own, *arguments.overrides, f"reward.overlap={overlap}"], ["demo"]))
            (scorer,) = trainer.parts.rewards.scorers.values()
            config = trainer.config
            pictures = config.prompts.per_iteration * config.method.group_size
            portions = -(-pictures // max(config.batch.rollout, config.method.group_size))
            if overlap == "false":
                trainer._iteration(0)  # warms up, and says how long a rollout takes
                each = trainer.parts.phases.seconds["rollout"] / pictures
                trainer = Trainer(load_config(None, [*own, *arguments.overrides, "reward.overlap=false"], ["demo"]))
                (scorer,) = trainer.parts.rewards.scorers.values()

            def slow(images, prompts, metadata, reward=scorer.function, each=each):
                began = time.perf_counter()
                values = reward(images, prompts, metadata)
                time.sleep(max(0.0, each * len(prompts) - (time.perf_counter() - began)))
                return values

            trainer.parts.rewards.scorers[scorer.name] = replace(scorer, function=slow)
            lines[overlap] = []
            for n in range(arguments.iterations + 1):
                began = time.perf_counter()
                figures = trainer._iteration(n)
                lines[overlap].append(figures | {"seconds": time.perf_counter() - began})
    scoring = each * pictures
    ratios = []
    for line in lines["true"][1:]:
        encode, rollout, decode, update = (line[f"time/{phase}"] for phase in ("encode", "rollout", "decode", "update"))
        floor = max(encode + rollout + decode + update, (rollout + decode) / portions + scoring + update)
        ratios.append(line["seconds"] / floor)
    seconds = {key: statistics.median(line["seconds"] for line in lines[key][1:]) for key in lines}
    same = all(
        a[key] == b[key]
        for a, b in zip(lines["false"], lines["true"], strict=True)
        for key in a
        if not key.startswith(("time/", "seconds"))
    )
    print(f"scoring {scoring:.2f} s an iteration, {portions} portions")
    print(f"iteration: scored after the rollout {seconds['false']:.2f} s, beside it {seconds['true']:.2f} s (medians)")
    print(f"over the floor: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f} of {len(ratios)}")
    print("rewards, gradients and losses " + ("identical" if same else "DIFFER"))


if __name__ == "__main__":
    main()
