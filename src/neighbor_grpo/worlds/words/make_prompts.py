"""Write the prompt files that ship with the bundled model: python -m neighbor_grpo.worlds.words.make_prompts."""

import re

import numpy as np

from neighbor_grpo.worlds.words.world import PROMPTS, sample_specs

# No prompt may hold one of these, which are rude in some language.
RUDE = (
    "anal anus bite caca coc cul cum cur dago dic dik fag fic fig fuc fuk fut gag git hoe homo hor hui hur kak kik kok kur "
    "lezi lol mof nazi neg nig nud ped pen pip pis pizd pop pub puc pul pus put rap rec seg sem sif sodo sot suc suk suka "
    "tar tet tit tut vag vul wan wog wop ziz"
)
_RUDE = re.compile("|".join(RUDE.split()), re.IGNORECASE)

if __name__ == "__main__":
    PROMPTS.mkdir(exist_ok=True)
    for name, n, held_out in (("train", 1024, False), ("heldout", 256, True)):
        specs = sample_specs(2 * n, np.random.default_rng(2026), held_out)
        prompts = [spec.prompt for spec in specs if not _RUDE.search(spec.text)]
        (PROMPTS / f"{name}.txt").write_text("".join(prompt + "\n" for prompt in prompts[:n]))
