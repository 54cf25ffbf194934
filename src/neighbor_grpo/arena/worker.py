"""One thread that carries out a study; what was asked while it wrote is written together, with one wait for the disk."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 64  # tasks of one transaction


@dataclass(frozen=True)
class _Task:
    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    reply: "asyncio.Future[Any]"


class Worker:
    """Do tasks one after another, several in one transaction, and reply when it is committed.

    transaction: opens one.  refusals: errors that a task raises before it writes anything, so that they end only this task; any
    other error ends all tasks of its transaction.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Any]], refusals: tuple[type[Exception], ...]) -> None:
        self._transaction, self._refusals = transaction, refusals
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="study", daemon=True)
        self._thread.start()

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread; the result is on the disk."""
        loop = asyncio.get_running_loop()
        task = _Task(partial(work, *arguments), loop, loop.create_future())
        self._tasks.put(task)
        result: T = await task.reply
        return result

    def stop(self) -> None:
        """End the thread after what was asked."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            tasks = [self._tasks.get()]
            while len(tasks) < MOST and not self._tasks.empty():
                tasks.append(self._tasks.get())
            going = None not in tasks
            self._do_all([task for task in tasks if task])

    def _do_all(self, tasks: list[_Task]) -> None:
        results: list[Any] = []
        try:
            with self._transaction():
                for task in tasks:
                    try:
                        results.append(task.work())
                    except self._refusals as refusal:
                        results.append(refusal)
        except Exception as error:
            results = [error] * len(tasks)
        for task, result in zip(tasks, results, strict=True):
            with suppress(RuntimeError):  # the server has stopped, and nobody waits any more
                task.loop.call_soon_threadsafe(_reply, task.reply, result)


def _reply(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():  # its request has gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
