"""Write the prompt files that ship with the bundled model: python -m neighbor_grpo.worlds.scenes.make_prompts."""

import numpy as np

from neighbor_grpo.worlds.scenes.world import PROMPTS, Spec, sample_specs


def lists() -> dict[str, list[Spec]]:
    """Return the prompts of each file."""
    train, heldout = (sample_specs(n, np.random.default_rng(2025), held) for n, held in ((1024, False), (256, True)))
    single, several = ([spec for spec in train if (spec.family == "single") == one] for one in (True, False))
    # nearly every single object is drawn right already, and groups that are all right teach nothing: one in thirteen stays
    return {"train": train, "heldout": heldout, "hard": several + single[: len(several) // 12]}


if __name__ == "__main__":
    PROMPTS.mkdir(exist_ok=True)
    for name, specs in lists().items():
        (PROMPTS / f"{name}.txt").write_text("".join(spec.prompt + "\n" for spec in specs))
