"""What is trained: the transformer's weights (a LoRA's or all), their optimizer and their running average."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.directories import written_whole
from neighbor_grpo.methods.tree import Decisions
from neighbor_grpo.models.experts import Experts
from neighbor_grpo.models.lora import make_trainable, save_all, save_lora
from neighbor_grpo.models.quantization import adamw, compile_blocks
from neighbor_grpo.models.registry import Cond, FlowModel
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.gradients import accumulate
from neighbor_grpo.training.ranks import divided, on_main, reshard, whole


class NotFinite(Exception):
    """A loss or gradient is infinite or NaN; the weights are those before it."""


class RanksDiffer(Exception):
    """The ranks no longer hold the same weights."""


class Learner:
    """The weights are whole on every rank, or divided by FSDP2.  Every rank calls every method; the main one writes files."""

    def __init__(self, model: FlowModel, config: Config, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator, self.updates = model, config, accelerator, 0
        torch.manual_seed(config.seed)  # the LoRA's initial weights
        m, o = config.model, config.optimizer
        self.transformer = model.transformer
        if accelerator.is_fsdp2 and isinstance(self.transformer, Experts):  # its collectives want all ranks in one of them
            raise UserError("a model of two experts is not divided by FSDP2: train it without, with a LoRA (model.lora)")
        if accelerator.is_fsdp2 and (m.quantize or m.fp8_rollout or o.name == "adamw_8bit"):
            raise UserError("FSDP2 divides 16 or 32 bits: leave out model.quantize, model.fp8_rollout and adamw_8bit")
        make_trainable(model, m.lora)
        if m.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if m.compile:
            compile_blocks(self.transformer)
        self.weights = checkpoint.trainable(self.transformer)
        self.optimizer = adamw(o.name)(self.weights.values(), lr=o.lr, weight_decay=o.weight_decay)
        if accelerator.is_fsdp2:
            accelerator.prepare(self.transformer, self.optimizer)  # divides the weights of both, in place
            self.weights = checkpoint.trainable(self.transformer)
        self.ema = EMAModel(list(self.weights.values()), decay=config.ema.decay) if config.ema else None

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self, decisions: Decisions, cond: Cond) -> dict[str, float]:
        """One optimizer step, all ranks together; its health figures."""
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * min(1.0, (self.updates + 1) / (o.warmup + 1))
        weights = list(self.weights.values())
        stats = accumulate(self.config.method, self.model, cond, decisions, self.config.batch.update, weights, self.accelerator)
        norm = whole(torch.nn.utils.clip_grad_norm_(weights, o.grad_clip))
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
        if self.accelerator.num_processes == 1 or self.accelerator.is_fsdp2:  # what is divided is on one rank only
            return
        here = {
            name: hashlib.sha256(p.detach().cpu().contiguous().view(torch.uint8).numpy()).digest()
            for name, p in self.weights.items()
        }
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
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the trained weights and their average, one after another."""
        for average, weight in zip(self.ema.shadow_params, self.weights.values(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        reshard(self.transformer)

    def save(self, directory: Path, number: int) -> Path:
        """A checkpoint from which `load` goes on, complete when a rank returns."""
        main = self.accelerator.is_main_process
        weights = on_main(self.weights, main)
        state = on_main(
            {
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "updates_done": self.updates,
            },
            main,
        )
        if main:
            checkpoint.save(directory, number, weights, state)
        self.accelerator.wait_for_everyone()
        return checkpoint.place(directory, number)

    def load(self, directory: Path) -> int:
        """Take up the newest checkpoint; its number."""
        number, state = checkpoint.load(directory, self.weights)
        weights, moments = list(self.weights.values()), state["optimizer"]["state"]
        for n, kept in moments.items() if self.accelerator.is_fsdp2 else ():
            moments[n] = {name: divided(value, weights[n]) for name, value in kept.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates_done"]
        if self.ema:
            average = zip(state["ema"]["shadow_params"], weights, strict=True)
            self.ema.load_state_dict(state["ema"] | {"shadow_params": [divided(value, weight) for value, weight in average]})
        return number

    def export(self, directory: Path) -> None:
        """The averaged weights in diffusers' layout: directory/lora, or directory/transformer after a full fine-tune."""
        main = self.accelerator.is_main_process
        with self.averaged():
            weights = on_main(self.weights, main)
            if main and self.config.model.lora:
                save_lora(self.model.pipe, self.transformer, directory / "lora", weights)
            elif main:
                save_all(self.transformer, directory / "transformer", weights)

    def keep_best(self, directory: Path, iteration: int, measure: str, value: float) -> bool:
        """Export to `directory`, in place of what it holds, if the value is higher than that one's; whether it was."""
        record = directory / "best.json"
        better = not record.is_file() or json.loads(record.read_text())["value"] < value
        if not broadcast_object_list([better])[0]:
            return False
        if not self.accelerator.is_main_process:
            self.export(directory)
            return True
        with written_whole(directory) as aside:
            self.export(aside)
            (aside / record.name).write_text(json.dumps({"iteration": iteration, "measure": measure, "value": value}) + "\n")
        return True
