"""Rewards in files and modules of the user: each file is loaded once, and may import the modules beside it."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from neighbor_grpo.console import reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.call import contained
from neighbor_grpo.rewards.scorer import FILE_MARK

_folders: list[str] = []  # of the files that were loaded, the newest first; they are at the end of sys.path


def load_file(path: str) -> ModuleType:
    """Load a user's file, or return its module if this content was loaded from there before.

    The module has a name of its own in `sys.modules`, where dataclasses and pickle look for it.  Raises UserError if the file
    cannot be read, or whatever it raises.
    """
    file = Path(path).expanduser().absolute()
    with users_code(f"reward file {path} does not load", "correct the file"):
        digest = hashlib.sha256(str(file).encode(errors="surrogatepass") + b"\0" + file.read_bytes()).hexdigest()[:12]
        name = f"{file.stem}{FILE_MARK}{digest}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader  # a .py file always has a loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with _siblings(str(file.parent)):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def load_module(name: str) -> ModuleType:
    """Import a user's module by its name.  Raises UserError for whatever it raises."""
    with users_code(f"reward module {name} does not load", "correct the module"):
        return importlib.import_module(name)


@contextmanager
def users_code(what: str, remedy: str) -> Iterator[None]:
    """Run code of the user's outside of scoring.  Raises UserError for whatever it raises, SystemExit included."""
    try:
        with contained():
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's code may raise anything
        raise UserError(f"{what} ({reason_of(error)}): {remedy}") from error


@contextmanager
def _siblings(folder: str) -> Iterator[None]:
    """Make the modules of a folder importable, after all installed ones: a helper must not replace a library.

    Modules of the same names that belong to another user's folder are put aside while the file loads.
    """
    others, rest = [known for known in _folders if known != folder], [entry for entry in sys.path if entry not in _folders]
    if folder not in rest:
        _folders[:] = [folder, *others]
    sys.path[:] = rest + _folders
    tops = {name for name, module in list(sys.modules.items()) if "." not in name and _home(module) in others}
    aside = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in tops}
    for name in aside:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update({name: module for name, module in aside.items() if name not in sys.modules})


def _home(module: ModuleType) -> str | None:
    """Return the folder in which a module or a package lies."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    place = Path(file).parent
    return str(place.parent if Path(file).name == "__init__.py" else place)
