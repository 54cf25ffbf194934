"""Write the prompt files that ship with the bundled model: python -m neighbor_grpo.worlds.words.make_prompts."""

import numpy as np

from neighbor_grpo.worlds.words.world import PROMPTS, sample_specs

if __name__ == "__main__":
    PROMPTS.mkdir(exist_ok=True)
    for name, n, held_out in (("train", 1024, False), ("heldout", 256, True)):
        specs = sample_specs(n, np.random.default_rng(2026), held_out)
        (PROMPTS / f"{name}.txt").write_text("".join(spec.prompt + "\n" for spec in specs))
