"""The settings of a run as a whole, and what must hold between its sections."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PlainSerializer, PlainValidator, PrivateAttr, model_validator

from neighbor_grpo.config.methods import read_method, write_method
from neighbor_grpo.config.origins import Difference, Sources, differences
from neighbor_grpo.config.sections import (
    Batch,
    Ema,
    Evaluation,
    Model,
    Optimizer,
    Prompts,
    Rewards,
    Scouts,
    Trackers,
)
from neighbor_grpo.methods import Method
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.methods.protocol import check_copy
from neighbor_grpo.models.settings import Device, Place, Positive, Section, Seed

_OF_WORLDS = {"scenes": ["scenes_strict", "scenes_distance"], "words": ["words_exact", "words_distance"]}
AnyMethod = Annotated[Method, PlainValidator(read_method), PlainSerializer(write_method)]


class Config(Section):
    """Describe a whole run; the defaults are the published recipe, with a LoRA, on the bundled model and task."""

    run_dir: Place | None = Field(
        None, description="directory of everything that the run writes; null = the first free runs/NNN"
    )
    seed: Seed = Field(0, description="seed of everything random")
    iterations: Annotated[int, Field(ge=1, le=10**9)] = Field(300, description="rollouts, each followed by its optimizer steps")
    device: Device = Field("auto", description="auto, cuda, mps or cpu")
    model: Model = Model()
    prompts: Prompts = Prompts()
    method: AnyMethod = Field(Neighbor(), description="the method and its hyper-parameters")
    reward: Rewards = Rewards()
    scouts: Scouts | None = Field(None, description="null = every sample is rolled out in full at once")
    optimizer: Optimizer = Optimizer()
    ema: Ema | None = Field(Ema(), description="null = no average, evaluate and export the trained weights")
    evaluate: Evaluation = Evaluation()
    batch: Batch = Batch()
    trackers: Trackers = Trackers()
    seconds: float | None = Field(None, gt=0, description="seconds of training after which the run ends; null = no limit")
    save_every: Annotated[int, Field(ge=1, le=10**9)] = Field(20, description="iterations between checkpoints")
    keep_checkpoints: Positive = Field(2, description="newest checkpoints that are kept")

    _sources: Sources = PrivateAttr(default_factory=Sources)

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.scouts:
            self._check_scouts(self.scouts)
        if self.method.drawn_by:
            check_copy(self.method.drawn_by, self.method.copies)
        return self

    @property
    def copies(self) -> tuple[str, ...]:
        """Return the names of the copies of weights: the method's, and the reference of a full fine-tune."""
        return (*self.method.copies, *(["reference"] if self.method.needs_reference and not self.model.lora else []))

    def _check_scouts(self, scouts: Scouts) -> None:
        if scouts.count < self.method.group_size:
            raise ValueError(f"scouts.count ({scouts.count}) is less than method.group_size ({self.method.group_size})")
        if scouts.steps > self.method.num_steps:
            raise ValueError(f"scouts.steps ({scouts.steps}) exceeds method.num_steps ({self.method.num_steps})")
        if scouts.fp8 and self.model.quantize:
            raise ValueError("scouts.fp8 needs weights that are not quantized: leave out model.quantize")

    def with_sources(self, sources: Sources) -> "Config":
        """Return the same settings, with the origins of their values."""
        config = self.model_copy()
        config._sources = sources
        return config

    def differences(self) -> list[Difference]:
        """Return every value that is not its default, with its origin."""
        return differences(self, self._sources.loaded)

    @property
    def presets(self) -> tuple[str, ...]:
        """Return the names of the presets in force, in the order in which they were applied."""
        return self._sources.presets

    @property
    def families(self) -> Mapping[str, str]:
        """Return the pipeline class that each preset in force is for, of presets that name one."""
        return self._sources.families

    @property
    def watched(self) -> list[str]:
        """Return the names of the rewards and metrics that are evaluated but not trained on."""
        if self.reward.watch is not None:
            return [name for name in self.reward.watch if name not in self.reward.train]
        drawn = self.model.path.removesuffix("_4") == self.prompts.path  # scenes_4 draws scenes too
        own = _OF_WORLDS.get(self.prompts.path, []) if drawn else []
        several = ["diversity"] if self.evaluate.seeds > 1 else []
        names = [*own, *several, "jpeg_size", "grid_artefacts", "saturation", "sharpness"]
        return [name for name in names if name not in self.reward.train]
