"""What is trained: the transformer's weights (a LoRA's or all), their optimizer, their running average, lagging copies."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
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
from neighbor_grpo.run.files import TRAINED
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.errors import NotFiniteError, RanksDifferError
from neighbor_grpo.training.gradients import Step, accumulate
from neighbor_grpo.training.optimizer import build_optimizer, rate
from neighbor_grpo.training.ranks import divided, on_main, reshard, whole


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
        self.copies = {name: [w.detach().clone() for w in self.weights.values()] for name in config.copies}

    def _check_fsdp2(self) -> None:
        """Raise UserError for what cannot be divided over ranks."""
        c = self.config
        if not self.accelerator.is_fsdp2:
            return
        if isinstance(self.transformer, Experts):  # its collectives need all ranks in the same expert
            raise UserError("FSDP2 cannot divide a model of two experts: train it without FSDP2, with a LoRA (model.lora)")
        if c.model.quantize or self.model.frozen or c.model.fp8_rollout or c.optimizer.name == "adamw_8bit":
            raise UserError(
                "FSDP2 divides 16 or 32 bits: leave out model.quantize, quantized transformers, fp8_rollout and adamw_8bit"
            )
        if c.copies:
            raise UserError(f"FSDP2 cannot divide the copies of weights of {method_name(c.method)}: train it without FSDP2")

    @property
    def lr(self) -> float:
        """Return the rate of the last optimizer step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, rows: Rows, cond: Cond, done: float = 0.0) -> Step:
        """Take one optimizer step, all ranks together.  Raises NotFiniteError before anything is changed.

        done: share of the run's iterations that are done.
        """
        o = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = rate(o, self.updates, done)
        weights = list(self.weights.values())
        policy_of = self.policy_of(cond)
        step = accumulate(
            self.config.method, policy_of, self.transformer, rows, self.config.batch.update, weights, self.accelerator
        )
        norm = float(whole(torch.nn.utils.clip_grad_norm_(weights, o.grad_clip)))
        figures = {**step.figures, "grad_norm": norm}
        for name in ("loss", "grad_norm"):
            if not isfinite(figures[name]):
                found = f"{name} is not finite ({figures[name]}) at optimizer step {self.updates}"
                raise self._not_finite(found, rows, policy_of)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema:
            self.ema.step(self.weights.values())
        return replace(step, figures=figures)

    def policy_of(self, cond: Cond) -> Callable[[Rows], ModelPolicy]:
        """Return what makes the policy that a loss over some rows sees."""
        weights, guided = list(self.weights.values()), self.config.method.guided
        return lambda rows: ModelPolicy(self.model, cond.take(rows.prompt), weights, self.copies, guided)

    def _not_finite(self, found: str, rows: Rows, policy_of: Callable[[Rows], ModelPolicy]) -> NotFiniteError:
        """Look for the first tensor, and for the prompts, that are not finite."""
        tensors = {f"the weight {name}": weight for name, weight in self.weights.items()} | {
            f"the gradient of {name}": weight.grad for name, weight in self.weights.items() if weight.grad is not None
        }
        first = next((name for name, tensor in tensors.items() if not whole(tensor.detach()).isfinite().all()), None)
        prompts: dict[int, None] = {}
        for row in [] if self.accelerator.is_fsdp2 else rows.split(1):  # FSDP2's ranks run the same forwards only
            with torch.no_grad():
                loss, _ = self.config.method.loss(policy_of(row), row.to(self.accelerator.device))
            if not loss.isfinite().all():
                prompts |= dict.fromkeys(row.prompt.flatten().tolist())
        return NotFiniteError(f"{found}{f', first in {first}' if first else ''}", list(prompts))

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

    def save(self, directory: Path, number: int, keep: int, unrecorded: dict[str, float] | None = None) -> Path:
        """Write a checkpoint, which is complete when a rank returns; return its directory.

        unrecorded: figures of the last iteration, whose evaluation was given up.
        """
        main = self.accelerator.is_main_process
        weights = on_main(self.weights, main)
        state = on_main(
            {
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "copies": self.copies,
                "updates_done": self.updates,
                "unrecorded": unrecorded,
            },
            main,
        )
        if main:
            checkpoint.save(directory, number, weights, state, keep)
        self.accelerator.wait_for_everyone()
        return checkpoint.place(directory, number)

    def load(self, place: Path) -> dict[str, float] | None:
        """Resume from a checkpoint; return the figures of its last iteration if they were not recorded."""
        state = checkpoint.load(place, self.weights)
        weights, moments = list(self.weights.values()), state["optimizer"]["state"]
        for n, kept in moments.items() if self.accelerator.is_fsdp2 else ():
            moments[n] = {name: divided(value, weights[n]) for name, value in kept.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # what the settings say now, not what was saved
            group["weight_decay"] = self.config.optimizer.weight_decay
        self.updates = state["updates_done"]
        if self.ema and self.config.ema:
            average = zip(state["ema"]["shadow_params"], weights, strict=True)
            self.ema.load_state_dict(state["ema"] | {"shadow_params": [divided(value, weight) for value, weight in average]})
            self.ema.decay = self.config.ema.decay
        for name, values in state["copies"].items():
            for value, kept in zip(self.copies[name], values, strict=True):
                value.copy_(kept)
        return state["unrecorded"]

    def export(self, directory: Path) -> None:
        """Write the averaged weights in diffusers' layout: directory/lora, or directory/transformer after a full fine-tune."""
        main, lora = self.accelerator.is_main_process, self.config.model.lora
        with self.averaged():
            weights = on_main(self.weights, main)
            if not main:
                return
            with atomic.directory(directory / ("lora" if lora else "transformer"), TRAINED) as aside:
                if lora:
                    save_lora(self.model.pipe, self.transformer, aside, weights)
                else:
                    save_all(self.transformer, aside, weights)

    def keep_best(self, directory: Path, iteration: int, measure: str, value: float) -> bool:
        """Export to `directory` if `value` is higher than the value kept there; return whether it was."""
        main = self.accelerator.is_main_process
        better = main and self._better(directory, measure, value)
        if not broadcast_object_list([better])[0]:
            return False
        if not main:
            self.export(directory)
            return True
        with atomic.directory(directory, "best weights") as aside:
            self.export(aside)
            kept = {"version": atomic.VERSION, "iteration": iteration, "measure": measure, "value": value}
            atomic.write(aside / "best.json", json.dumps(kept) + "\n")
        return True

    def _better(self, directory: Path, measure: str, value: float) -> bool:
        """Return whether a value is higher than that of the kept weights; what is damaged is replaced."""
        try:
            atomic.check(directory, "best weights")
            kept = atomic.read_json(directory / "best.json")
        except atomic.DamagedError:
            return True
        return kept["measure"] != measure or kept["value"] < value
