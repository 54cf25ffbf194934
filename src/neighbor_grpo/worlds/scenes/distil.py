"""The recipe of scenes_4: the bundled model distilled to the four Euler steps of its own sampler.

Between two times t > s of that grid the student learns the mean velocity of the teacher's path,

    v(x_t, t) = (x_s - x_t) / (s - t),        x_s by eight steps of DPM-Solver++(2M) of the teacher from x_t

so that its Euler step lands where the path does.  In the first half of the rounds the states x_t are those of the teacher;
then they are those that the student reaches, from which the teacher goes on, so that the student learns to mend what it did.
A state has one target, whatever the noise of a picture was, hence nothing is averaged and pictures stay sharp.
"""

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from torch import Tensor

from neighbor_grpo.files import atomic
from neighbor_grpo.flow.path import shift_time
from neighbor_grpo.flow.solvers import euler, solve
from neighbor_grpo.worlds.pretrain import SHIFT, rate_at
from neighbor_grpo.worlds.scenes.pretrain import FAMILY_SHARES, TEXT_LENGTH
from neighbor_grpo.worlds.scenes.world import sample_specs

STEPS = 4  # of the student
FINE = 8  # of the teacher for each of them
ROWS = 4096  # rows of one forward of the teacher
TEACHER = Path(__file__).parent / "model"


def grid(count: int) -> list[float]:
    """Return the times of the sampler with so many steps, from 1 to 0.

    >>> grid(4)
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    return [float(shift_time(1 - k / count, SHIFT)) for k in range(count + 1)]


class Distillation:
    """Hold teacher and student, and train the student round by round.

    pictures: new noises and prompts of a round; steps: optimizer steps of all rounds together.
    """

    def __init__(self, rounds: int, steps: int, pictures: int, batch: int, seed: int, device: str) -> None:
        """Load the teacher; the student begins with its weights."""
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU
        self.settings = {"rounds": rounds, "steps": steps, "pictures": pictures, "batch": batch, "seed": seed}
        self.done = 0  # rounds
        self.device = device
        self.pipe = FluxPipeline.from_pretrained(TEACHER).to(device)
        self.teacher = self.pipe.transformer.requires_grad_(False)
        self.student: FluxTransformer2DModel = deepcopy(self.teacher).requires_grad_(True)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
        )
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: rate_at(n, steps))
        self.image_ids = self.pipe._prepare_latent_image_ids(1, 4, 4, device, torch.float32)
        self.text_ids = torch.zeros(TEXT_LENGTH, 3, device=device)
        self.times = torch.tensor(grid(STEPS)[:-1], device=device)

    def velocity(self, model: torch.nn.Module, x: Tensor, t: Tensor, prompts: tuple[Tensor, Tensor]) -> Tensor:
        """Return a model's velocity at states x [R, 16, 64] and times t [R], of embedded prompts."""
        text, pooled = prompts
        return model(
            hidden_states=x,
            timestep=t,
            guidance=None,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    def round(self) -> None:
        """Make the lessons of one round and train on them; a round depends only on its number and on the state before it."""
        n, seed = self.done, 1000 * self.settings["seed"] + self.done
        torch.manual_seed(seed)
        walker = self.teacher if n < self.settings["rounds"] // 2 else self.average.module
        lessons = self.lessons(walker, self.embed(self.settings["pictures"], seed))
        ends = [self.settings["steps"] * k // self.settings["rounds"] for k in (n, n + 1)]
        losses = torch.stack([self.step(lessons) for _ in track(range(*ends), f"round {n + 1}")])
        by_time = " ".join(f"{loss:.5f}" for loss in losses[-200:].mean(0).tolist())
        print(f"round {n + 1}: loss at the four times {by_time}", flush=True)
        self.done += 1

    @torch.no_grad()
    def embed(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw n training prompts and encode them, [n, L, d] and [n, d']."""
        texts = [spec.prompt for spec in sample_specs(n, np.random.default_rng(seed), held_out=False, shares=FAMILY_SHARES)]
        names = sorted(set(texts))
        place = {name: k for k, name in enumerate(names)}
        rows = torch.tensor([place[text] for text in texts], device=self.device)
        text, pooled, _ = self.pipe.encode_prompt(names, prompt_2=None, device=self.device, max_sequence_length=TEXT_LENGTH)
        return text[rows], pooled[rows]

    @torch.no_grad()
    def lessons(self, walker: torch.nn.Module, prompts: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Walk new noises down the grid, and ask the teacher for the mean velocity at every state.

        Returns states and targets [n, STEPS, 16, 64], and the prompts.
        """
        parts = [self._walk(walker, some) for some in zip(*(column.split(ROWS) for column in prompts), strict=True)]
        return *(torch.cat(columns) for columns in zip(*parts, strict=True)), *prompts

    def _walk(self, walker: torch.nn.Module, prompts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return states and targets of so many prompts, [R, STEPS, 16, 64] each."""
        x = torch.randn(len(prompts[0]), 16, 64, device=self.device)
        fine, states, targets = grid(STEPS * FINE), [], []
        for k, (t, s) in enumerate(pairwise(grid(STEPS))):
            y = solve("dpmpp_2m", lambda x, t: self._at(self.teacher, x, t, prompts), x, fine[k * FINE : (k + 1) * FINE + 1])
            states.append(x)
            targets.append((y - x) / (s - t))
            x = y if walker is self.teacher else euler(x, self._at(walker, x, t, prompts), t, s)
        return torch.stack(states, 1), torch.stack(targets, 1)

    def _at(self, model: torch.nn.Module, x: Tensor, t: float, prompts: tuple[Tensor, Tensor]) -> Tensor:
        return self.velocity(model, x, torch.full((len(x),), t, device=self.device), prompts)

    def step(self, lessons: tuple[Tensor, ...]) -> Tensor:
        """Take an optimizer step on random pictures, all four times of each; return the loss at each time, [STEPS]."""
        states, targets, *prompts = lessons
        rows = torch.randint(len(states), (self.settings["batch"],), device=self.device)
        text, pooled = (column[rows].repeat_interleave(STEPS, 0) for column in prompts)
        v = self.velocity(self.student, states[rows].flatten(0, 1), self.times.repeat(len(rows)), (text, pooled))
        losses = (v.view_as(targets[rows]) - targets[rows]).square().mean((0, 2, 3))
        self.optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.student)
        return losses.detach()

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        parts = {name: getattr(self, name).state_dict() for name in ("student", "average", "optimizer", "scheduler")}
        return {"settings": self.settings, "done": self.done, **parts}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from a state of the same settings."""
        self.done = state["done"]
        for name in ("student", "average", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])

    def save(self, out: Path) -> None:
        """Write the averaged student as a FluxPipeline directory, transformer and VAE in half precision."""
        parts = {"transformer": deepcopy(self.average.module).half(), "vae": deepcopy(self.pipe.vae).half()}
        FluxPipeline(**self.pipe.components | parts).save_pretrained(out)
        for file in out.glob("*/config.json"):
            settings = json.loads(file.read_bytes())
            settings.pop("_name_or_path", None)  # where the teacher lies on this machine
            atomic.write(file, json.dumps(settings, indent=2) + "\n")
