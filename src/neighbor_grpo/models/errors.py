"""What libraries raise while they read a model's files."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from neighbor_grpo.errors import UserError, printable


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn whatever is raised while files are read into a UserError that begins with `what`.

    Files from anywhere can make the libraries raise anything; running out of memory is not their mistake.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = printable((str(error).strip().splitlines() or [""])[0][:300])
        raise UserError(f"{what} ({type(error).__name__}: {reason}): check it or download it again") from error
