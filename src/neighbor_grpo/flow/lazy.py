"""torch, imported at its first use.

Its import takes two seconds.  The mathematics (`flow`, `methods`) is also read for names and settings only, by `--help` and by
the check of a configuration, and these are answered without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            value = getattr(torch, name)
            setattr(self, name, value)  # from now on an ordinary attribute
            return value

    torch = _Torch()

__all__ = ["torch"]
