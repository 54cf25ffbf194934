"""The methods by name.

Each is a file that reads from top to bottom as the paper does: its formulas, its hyper-parameters (dataclass fields whose
defaults are the published recipe), and the members of `protocol.Method`.
"""

import difflib
import importlib.util
import os
import sys
from dataclasses import is_dataclass
from pathlib import Path

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.methods.awm import AWM
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.dance_grpo import DanceGRPO
from neighbor_grpo.methods.dgpo import DGPO
from neighbor_grpo.methods.fdfo import FDFO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import FlowGRPOFast, MixGRPO, MixGRPOFlash, MixGRPOFlashStar
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.methods.neighbor_late import NeighborLate
from neighbor_grpo.methods.nft import NFT
from neighbor_grpo.methods.protocol import REQUIRED, Method
from neighbor_grpo.methods.v_grpo import VGRPO

METHODS: dict[str, type[Method]] = {
    "neighbor": Neighbor,
    "neighbor_late": NeighborLate,
    "fdfo": FDFO,
    "flow_grpo": FlowGRPO,
    "flow_grpo_fast": FlowGRPOFast,
    "dance_grpo": DanceGRPO,
    "mix_grpo": MixGRPO,
    "mix_grpo_flash": MixGRPOFlash,
    "mix_grpo_flash_star": MixGRPOFlashStar,
    "branch_grpo": BranchGRPO,
    "nft": NFT,
    "awm": AWM,
    "v_grpo": VGRPO,
    "dgpo": DGPO,
}


def load_method(name: str) -> type[Method]:
    """Return the class of a method: a name in METHODS, or "path/to/file.py:Class" for one's own.

    Raises UserError for a name that is unknown, and for a class that lacks a member of the protocol.
    """
    if name in METHODS:
        return METHODS[name]
    path, colon, kind = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        near = difflib.get_close_matches(name[:100], METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(METHODS)}, or your own as path/to/file.py:Class"
        raise UserError(f"unknown method {shown(name)}: {hint}")
    return _checked(name, _class_in(name, Path(os.path.expanduser(path)), kind))


def _class_in(name: str, path: Path, kind: str) -> type:
    spec = importlib.util.spec_from_file_location(f"neighbor_grpo_method_{path.stem}", path)
    if not os.path.isfile(path) or spec is None or spec.loader is None:
        raise UserError(f"method {shown(name)}: there is no file {path.name[:100]}: correct the path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks for the names in postponed annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file does wrong while it loads
        raise UserError(f"method file {path} does not load: {type(error).__name__}: {error}") from error
    if not isinstance(found := getattr(module, kind, None), type):
        raise UserError(f"method {name!r}: {path} defines no class {kind}")
    return found


def _checked(name: str, kind: type) -> type[Method]:
    members = {*dir(kind), *getattr(kind, "__dataclass_fields__", {})} - getattr(kind, "__abstractmethods__", frozenset())
    if missing := [member for member in REQUIRED if member not in members]:
        raise UserError(f"method {name!r} lacks {', '.join(missing)}: see neighbor_grpo.methods.protocol.Method")
    if not issubclass(kind, Method) or not is_dataclass(kind):
        raise UserError(f"method {name!r} must be a dataclass that derives from neighbor_grpo.methods.protocol.Method")
    return kind
