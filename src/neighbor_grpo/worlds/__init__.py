"""The bundled worlds: small models, their prompts, and judges that know what a picture of a prompt must show.

A world is a folder here.  It may have `model/`, a pipeline that `model.path` takes by the folder's name, and `prompts/` with
`train.txt` and `heldout.txt`, which `prompts.path` takes by the same name.
"""

from pathlib import Path

PROMPTS = {folder.parent.name: folder for folder in sorted(Path(__file__).parent.glob("*/prompts"))}
