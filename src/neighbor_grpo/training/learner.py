"""What is trained: the transformer's weights (a LoRA's or all), their optimizer, their running average, lagging copies."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel

from neighbor_grpo.config import Config, method_name
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.backends import compile_blocks
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.experts import Experts
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.lora import make_trainable, save_all, save_lora
from neighbor_grpo.models.policy import ModelPolicy, exchanged
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.gradients import accumulate
from neighbor_grpo.training.optimizer import build_optimizer
from neighbor_grpo.training.ranks import divided, on_main, reshard, whole


class NotFiniteError(Exception):
    """Say that a loss or gradient is infinite or NaN; the weights are those before it."""


class RanksDifferError(Exception):
    """Say that the ranks no longer hold the same weights."""


class Learner:
    """Hold the weights, full on every rank or divided by FSDP2.  Every rank calls every method; the main one writes files."""

    def __init__(self, model: Family, config: Config, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator, self.updates = model, config, accelerator, 0
        self.transformer = model.transformer
        self._check_fsdp2()
        torch.manual_seed(config.seed)  # the LoRA's initial weights
        m, o = config.model, config.optimizer
        make_trainable(model, m.lora)
        if m.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if m.compile:
            compile_blocks(self.transformer)
        self.weights = checkpoint.trainable(self.transformer)
        self.optimizer = build_optimizer(o.name, self.weights.values(), o.lr, o.weight_decay)
        if accelerator.is_fsdp2:
            accelerator.prepare(self.transformer, self.optimizer)  # divides the weights of both, in place
            self.weights = checkpoint.trainable(self.transformer)
        self.ema = EMAModel(list(self.weights.values()), decay=config.ema.decay) if config.ema else None
        self.copies = {name: [w.detach().clone() for w in self.weights.values()] for name in config.method.copies}

    def _check_fsdp2(self) -> None:
        """Raise UserError for what cannot be divided over ranks."""
        c = self.config
        if not self.accelerator.is_fsdp2:
            return
        if isinstance(self.transformer, Experts):  # its collectives need all ranks in the same expert
            raise UserError("FSDP2 cannot divide a model of two experts: train it without FSDP2, with a LoRA (model.lora)")
        if c.model.quantize or c.model.fp8_rollout or c.optimizer.name == "adamw_8bit":
            raise UserError("FSDP2 divides 16 or 32 bits: leave out model.quantize, model.fp8_rollout and adamw_8bit")
        if c.method.copies:
            raise UserError(f"FSDP2 cannot divide the lagging copies of {method_name(c.method)}: train it without FSDP2")

    @property
    def lr(self) -> float:
        """Return the rate of the last optimizer step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, rows: Rows, cond: Cond) -> dict[str, float]:
        """Take one optimizer step, all ranks together; return its figures."""
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * min(1.0, (self.updates + 1) / (o.warmup + 1))
        weights = list(self.weights.values())

        def policy_of(part: Rows) -> ModelPolicy:
            return ModelPolicy(self.model, cond.take(part.prompt), weights, self.copies)

        figures = accumulate(
            self.config.method, policy_of, self.transformer, rows, self.config.batch.update, weights, self.accelerator
        )
        norm = whole(torch.nn.utils.clip_grad_norm_(weights, o.grad_clip))
        values = {name: float(value) for name, value in (figures | {"grad_norm": norm}).items()}
        for name in ("loss", "grad_norm"):
            if not isfinite(values[name]):
                raise NotFiniteError(f"{name} is not finite ({values[name]}) at optimizer step {self.updates}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema:
            self.ema.step(self.weights.values())
        return values

    @torch.no_grad()
    def follow(self, iterations: int) -> None:
        """Move each lagging copy towards the weights:  copy <- d·copy + (1 - d)·theta  after so many iterations."""
        for name, decay in self.config.method.copies.items():
            d = decay(iterations)
            for value, weight in zip(self.copies[name], self.weights.values(), strict=True):
                value.lerp_(weight, 1 - d)

    def drawing(self) -> AbstractContextManager[None]:
        """Roll out with the weights that the method draws with: a lagging copy's, or the trained ones."""
        name = self.config.method.drawn_by
        return exchanged(list(self.weights.values()), self.copies[name]) if name else nullcontext()

    def check_ranks(self) -> None:
        """Raise RanksDifferError on every rank, naming the first parameter whose bits are not the same on all."""
        if self.accelerator.num_processes == 1 or self.accelerator.is_fsdp2:  # what is divided is on one rank only
            return
        here = {
            name: hashlib.sha256(p.detach().cpu().contiguous().view(torch.uint8).numpy().data).digest()
            for name, p in self.weights.items()
        }
        ranks = gather_object([here])
        for name in here:
            if odd := [rank for rank, there in enumerate(ranks) if there[name] != ranks[0][name]]:
                raise RanksDifferError(
                    f"{name} is not the same on rank 0 and rank {odd[0]} after {self.updates} optimizer steps"
                )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in the place of the trained ones for a while, if there is an average."""
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
        assert self.ema
        for average, weight in zip(self.ema.shadow_params, self.weights.values(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        reshard(self.transformer)

    def save(self, directory: Path, number: int) -> Path:
        """Write a checkpoint, which is complete when a rank returns; return its directory."""
        main = self.accelerator.is_main_process
        weights = on_main(self.weights, main)
        state = on_main(
            {
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "copies": self.copies,
                "updates_done": self.updates,
            },
            main,
        )
        if main:
            checkpoint.save(directory, number, weights, state)
        self.accelerator.wait_for_everyone()
        return checkpoint.place(directory, number)

    def load(self, directory: Path) -> int:
        """Resume from the newest checkpoint; return its number."""
        number, state = checkpoint.load(directory, self.weights)
        weights, moments = list(self.weights.values()), state["optimizer"]["state"]
        for n, kept in moments.items() if self.accelerator.is_fsdp2 else ():
            moments[n] = {name: divided(value, weights[n]) for name, value in kept.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates_done"]
        if self.ema:
            average = zip(state["ema"]["shadow_params"], weights, strict=True)
            self.ema.load_state_dict(state["ema"] | {"shadow_params": [divided(value, weight) for value, weight in average]})
        for name, values in state.get("copies", {}).items():
            for value, kept in zip(self.copies[name], values, strict=True):
                value.copy_(kept)
        return number

    def export(self, directory: Path) -> None:
        """Write the averaged weights in diffusers' layout: directory/lora, or directory/transformer after a full fine-tune."""
        main = self.accelerator.is_main_process
        with self.averaged():
            weights = on_main(self.weights, main)
            if main and self.config.model.lora:
                save_lora(self.model.pipe, self.transformer, directory / "lora", weights)
            elif main:
                save_all(self.transformer, directory / "transformer", weights)

    def keep_best(self, directory: Path, iteration: int, measure: str, value: float) -> bool:
        """Export to `directory` if `value` is higher than the value kept there; return whether it was."""
        record = directory / "best.json"
        better = not record.is_file() or json.loads(record.read_text())["value"] < value
        if not broadcast_object_list([better])[0]:
            return False
        if not self.accelerator.is_main_process:
            self.export(directory)
            return True
        with atomic.directory(directory, "best weights") as aside:
            self.export(aside)
            (aside / record.name).write_text(json.dumps({"iteration": iteration, "measure": measure, "value": value}) + "\n")
        return True
