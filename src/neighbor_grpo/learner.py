"""What is trained: the transformer's weights (a LoRA's or all), their optimizer and their running average."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel

from neighbor_grpo import checkpoint
from neighbor_grpo.config import Config
from neighbor_grpo.models import Cond, FlowModel
from neighbor_grpo.models.lora import add_lora, save_lora, train_all
from neighbor_grpo.tree import Decisions
from neighbor_grpo.update import accumulate


class NotFinite(Exception):
    """A loss or gradient is infinite or NaN; the weights are those before it."""


class RanksDiffer(Exception):
    """The ranks no longer hold the same weights."""


class Learner:
    def __init__(self, model: FlowModel, config: Config, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator, self.updates = model, config, accelerator, 0
        torch.manual_seed(config.seed)  # the LoRA's initial weights
        m, o = config.model, config.optimizer
        self.bare = model.transformer
        if m.lora:
            add_lora(self.bare, m.lora.rank, m.lora.alpha, m.lora.targets)
        else:
            train_all(self.bare)
        if m.gradient_checkpointing:
            self.bare.enable_gradient_checkpointing()
        self.weights = checkpoint.trainable(self.bare)
        optimizer = torch.optim.AdamW(self.weights.values(), lr=o.lr, weight_decay=o.weight_decay)
        model.transformer, self.optimizer = accelerator.prepare(self.bare, optimizer)
        self.ema = EMAModel(list(self.weights.values()), decay=config.ema.decay) if config.ema else None

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self, decisions: Decisions, cond: Cond) -> dict[str, float]:
        """One optimizer step, all ranks together; its health figures."""
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * min(1.0, (self.updates + 1) / (o.warmup + 1))
        total = len(decisions) * self.accelerator.num_processes
        stats = accumulate(
            self.config.method, self.model, cond, decisions, total, self.config.batch.update, self.accelerator
        )
        norm = self.accelerator.clip_grad_norm_(self.weights.values(), o.grad_clip)
        stats = {name: float(value) for name, value in (stats | {"grad_norm": norm}).items()}
        if not (isfinite(stats["grad_norm"]) and isfinite(stats["loss"])):
            odd = "gradient norm" if isfinite(stats["loss"]) else "loss"
            raise NotFinite(
                f"{odd} is not finite (loss {stats['loss']}, gradient norm {stats['grad_norm']}) "
                f"at optimizer step {self.updates}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema:
            self.ema.step(self.weights.values())
        return stats

    def check_ranks(self) -> None:
        """Raise RanksDiffer, on every rank, naming the first parameter whose bits are not the same on all."""
        if self.accelerator.num_processes == 1:
            return
        here = {name: hashlib.sha256(p.detach().cpu().contiguous().view(torch.uint8).numpy()).digest()
                for name, p in self.weights.items()}
        ranks = gather_object([here])
        for name in here:
            if odd := [rank for rank, there in enumerate(ranks) if there[name] != ranks[0][name]]:
                raise RanksDiffer(f"{name} is not the same on rank 0 and rank {odd[0]} after {self.updates} optimizer steps")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, if there is an average."""
        if not self.ema:
            yield
            return
        self.ema.store(self.weights.values())
        self.ema.copy_to(self.weights.values())
        try:
            yield
        finally:
            self.ema.restore(self.weights.values())

    def save(self, directory: Path, number: int) -> Path:
        """A checkpoint from which `load` goes on."""
        state = {
            "optimizer": self.optimizer.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
            "updates_done": self.updates,
        }
        return checkpoint.save(directory, number, self.weights, state)

    def load(self, directory: Path) -> int:
        """Take up the newest checkpoint; its number."""
        number, state = checkpoint.load(directory, self.bare)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates_done"]
        if self.ema:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        return number

    def export(self, directory: Path) -> None:
        """The averaged weights in diffusers' layout: directory/lora, or directory/transformer after a full fine-tune."""
        with self.averaged():
            if self.config.model.lora:
                save_lora(self.model.pipe, self.bare, directory / "lora")
            else:
                self.bare.save_pretrained(directory / "transformer")

    def keep_best(self, directory: Path, iteration: int, measure: str, value: float) -> bool:
        """Export to `directory`, in place of what it holds, if the value is higher than that one's; whether it was."""
        record = directory / "best.json"
        if record.is_file() and json.loads(record.read_text())["value"] >= value:
            return False
        aside = directory.with_name(f".{directory.name}-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        self.export(aside)
        (aside / record.name).write_text(json.dumps({"iteration": iteration, "measure": measure, "value": value}) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
        return True
