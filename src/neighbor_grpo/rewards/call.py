"""Calls of rewards in this process: they get data of their own, and leave the process as they found it.

A reward may be a user's code.  What it raises is a failure, what it returns is checked, and what it changes in its arguments
reaches nothing else.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from math import isfinite
from numbers import Real
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neighbor_grpo.rewards.scorer import Reward

Outcome = float | BaseException  # a score, or why it is missing


class ResultError(ValueError):
    """Report that a reward returned something else than a number for each picture."""


def call(
    function: Reward, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]], split: bool
) -> list[Outcome]:
    """Score pictures by one call.  If it raises an exception and `split` is set, score them again in halves."""
    n = len(prompts)
    try:
        # copies: what one reward changes in place must not reach the others, other pictures, or its own next try
        own = images.clone(), list(prompts), [deepcopy(row) for row in metadata]
        with contained():
            return read_values(function(*own), n)
    except ResultError as error:  # nothing says which value belongs to which picture
        return [error] * n
    except BaseException as error:  # a user's function may raise anything, such as SystemExit
        if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():  # elsewhere it is the function's own
            raise
        if n <= 1 or not split:
            return [error] * n
    halves = slice(0, n // 2), slice(n // 2, n)
    return [value for half in halves for value in call(function, images[half], prompts[half], metadata[half], split)]


@contextmanager
def contained() -> Iterator[None]:
    """Run someone else's code without gradients, and restore what it changes for the whole process.

    These are the working directory, torch's default type and device, its gradient mode and its number of threads.  A child
    process that the code forked and that comes back ends here: it must not train beside its parent.
    """
    process, folder = os.getpid(), _folder()
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    try:
        with torch.no_grad():  # a thread does not inherit it
            yield
    finally:
        if os.getpid() != process:
            os._exit(1)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None)  # this project sets none; to set "cpu" would act on all tensors made later
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if folder and _folder() != folder:
            with suppress(OSError):  # the directory is gone
                os.chdir(folder)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def read_values(values: Any, n: int) -> list[Outcome]:
    """Read what a reward returned for n pictures: a tensor [n], an array [n], or a list or tuple of n numbers.

    None, NaN, an infinity, an exception, or anything else in the place of a number is a failure of that picture.  Raises
    ResultError for anything else: a dict has keys and a set has no order, and neither says which number is whose.
    """
    if isinstance(values, Tensor):
        _check_shape(tuple(values.shape), n)
        if values.is_complex():
            raise ResultError(f"the reward returned a tensor of {values.dtype}: return one number a picture")
        return [_finite(value) for value in values.detach().cpu().double().tolist()]
    if isinstance(values, np.ndarray):
        _check_shape(values.shape, n)
        if values.dtype.kind not in "biufO":  # not dates, bytes or texts, which have numbers inside
            raise ResultError(f"the reward returned an array of {values.dtype}: return one number a picture")
        return [_number(value) for value in values.tolist()]
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise ResultError(
            f"the reward returned a {kind}: return a tensor, an array, a list or a tuple with one number a picture"
        )
    _check_shape((len(values),), n)
    return [_number(value) for value in values]


def _check_shape(shape: tuple[int, ...], n: int) -> None:
    if shape != (n,):
        raise ResultError(f"the reward returned shape {shape} for {n} pictures: return one value a picture")


def _number(value: Any) -> Outcome:
    """Read the value of one picture: a real number, or a tensor or an array without dimensions."""
    if isinstance(value, BaseException):
        return value
    if isinstance(value, Tensor | np.ndarray | np.number | np.bool_) and value.ndim == 0:
        value = value.detach().cpu().item() if isinstance(value, Tensor) else value.item()
    if value is None:
        return ResultError("the reward returned None")
    if not isinstance(value, Real):
        return ResultError(f"the reward returned a {type(value).__name__} instead of a number")
    try:
        return _finite(float(value))
    except OverflowError:
        return _finite(float("inf"))


def _finite(number: float) -> Outcome:
    return number if isfinite(number) else ResultError(f"the reward returned {number}")
