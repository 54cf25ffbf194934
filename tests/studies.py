"""Studies for tests: folders of small pictures, and a server in a thread."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image

from neighbor_grpo.arena.guard import Address
from neighbor_grpo.arena.rating import Rating, Rules
from neighbor_grpo.arena.server import Server
from neighbor_grpo.arena.store import Store
from neighbor_grpo.arena.study import Study, StudyInfo, read_study
from neighbor_grpo.files.listening import listen
from neighbor_grpo.files.listing import Picture, write_listing


def draw(folder: Path, prompts: Sequence[str], seeds: Sequence[int] = (0,), tone: int = 0, size: int = 16) -> Path:
    """Write a folder as `sample` does, of pictures that differ by tone, prompt and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for n, prompt in enumerate(prompts):
        for seed in seeds:
            name = f"{n:04d}-seed{seed}.png"
            pixels = np.random.default_rng([tone, n, seed]).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((4 * size, 4 * size), Image.Resampling.NEAREST).save(folder / name)
            listed.append(Picture(prompt, n, seed, name))
    write_listing(folder, listed)
    return folder


def study_of(place: Path, models: int = 2, prompts: int = 6, seeds: int = 1, questions: Sequence[str] = ()) -> Study:
    """Draw and read a study."""
    texts = [f"prompt <b>{n}</b> & more" for n in range(prompts)]
    folders = [draw(place / f"model-{m}", texts, range(seeds), tone=m) for m in range(models)]
    return read_study([str(folder) for folder in folders], questions)


def info_of(models: int = 2, prompts: int = 6, seeds: int = 1) -> StudyInfo:
    """Make up a study without pictures."""
    names = [f"model-{m}" for m in range(models)]
    texts = [f"prompt {n}" for n in range(prompts)]
    return StudyInfo(names, texts, [None] * prompts, ["overall"], [list(range(seeds))] * prompts, "")


class Served:
    """Hold a server that runs in a thread."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url

    @property
    def store(self) -> Store:
        """Return the store of the study."""
        return self.server.rating.store


@contextmanager
def served(study: Study, db: Path | str, rules: Rules | None = None, address: Address | None = None) -> Iterator[Served]:
    """Serve a study on the loopback interface."""
    store = Store.serving(str(db), study.info)
    server = Server(Rating(store, rules or Rules()), study, address or Address("127.0.0.1"))
    listening = listen("127.0.0.1", 0)
    process = uvicorn.Server(uvicorn.Config(server.app(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=process.run, args=([listening],))
    thread.start()
    try:
        yield Served(server, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        process.should_exit = True
        thread.join()
        server.worker.stop()
        store.close()
