"""The sections of a run's settings, typed, each with its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.methods.fields import MOST_SAMPLES, MOST_STEPS, SolverName
from neighbor_grpo.methods.scouts import Selection
from neighbor_grpo.models.settings import Frames, Lora, ModelSettings, Pixels, Place, Positive, Section

Times = Annotated[int, Field(ge=0, le=10**9)]  # iterations, optimizer steps: only counted
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class Model(ModelSettings):
    """Describe the model that is trained, and what of it."""

    path: Place = Field(
        "scenes", description="diffusers pipeline directory, hub id, or a bundled model: scenes, scenes_4, words"
    )
    lora: Lora | None = Field(Lora(), description="null = full fine-tuning")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, float32 on a CPU")
    gradient_checkpointing: bool = Field(False, description="recompute activations: a third more compute for much less memory")
    compile: bool = Field(False, description="torch.compile the transformer's repeated block; the first calls take minutes")
    fp8_rollout: bool = Field(False, description="rollout products in 8 bits; ratio/noise_floor shows the lost precision")

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.quantize and not self.lora:
            raise ValueError(f"model.quantize={self.quantize} freezes the weights: set model.lora, or leave out model.quantize")
        if self.base_loras and not self.lora:
            raise ValueError("model.base_loras stay frozen: set model.lora, or add them to the weights of model.path before")
        if self.quantize and self.fp8_rollout:
            raise ValueError("model.fp8_rollout needs weights that are not quantized: leave out model.quantize")
        return self


class Prompts(Section):
    """Describe the prompts of training and of evaluation."""

    path: Place = Field(
        "scenes",
        description=".txt, .jsonl, .json, .csv, .tsv or .parquet file, a dataset (directory or hub id), - for the standard "
        "input, or a bundled world's: scenes, words",
    )
    key: Name | None = Field(None, description="column of the texts; null = prompt, or the only one that can be it")
    split: Name | None = Field(None, description="split of a dataset; null = the only one")
    metadata: list[Name] | None = Field(None, description="columns that are kept for the rewards; null = all")
    eval_path: Place | None = Field(
        None, description="evaluation prompts, in the same formats; null = the first prompts of prompts.path"
    )
    eval_key: Name | None = Field(None, description="prompts.key of prompts.eval_path")
    eval_split: Name | None = Field(None, description="prompts.split of prompts.eval_path")
    per_iteration: Annotated[int, Field(ge=1, le=2**16)] = Field(8, description="P, prompts per iteration over all ranks")
    cache_dir: Name = Field("~/.cache/neighbor-grpo/text", description="directory of the cached text embeddings")
    cache_gb: float = Field(10.0, gt=0, le=10**9, description="disk space for the cached text embeddings, in GiB")

    @model_validator(mode="after")
    def _check(self) -> "Prompts":
        if self.eval_path is None and (self.eval_key or self.eval_split):
            raise ValueError("prompts.eval_key and prompts.eval_split describe prompts.eval_path: set it, or leave them out")
        return self


class Rewards(Section):
    """Describe the trained rewards, the watched rewards and metrics, and the settings of their scorers.

    Short forms: reward: NAME or {NAME: weight} for reward.train, and watch: [...] for reward.watch.
    """

    train: dict[Name, float] = Field(
        {"scenes": 1.0}, min_length=1, description="{name, file.py:function or package.module:function: weight}"
    )
    watch: list[Name] | None = Field(
        None,
        description="evaluated, never trained on: rewards and metrics; null = diversity, artefacts and similar metrics",
    )
    aggregate: Literal["advantages", "mean_advantages", "rewards"] = Field(
        "advantages",
        description="what the weights of several rewards multiply: z-scores; z-scores, over the sum of weights; or raw values",
    )
    scorers: dict[Name, dict[str, Any]] = Field(
        {}, description="settings of scorers by name: {hpsv2.1: {weights: PATH}, mine: {url: http://127.0.0.1:8000}}"
    )
    overlap: bool = Field(False, description="score in a thread while the next groups (batch.rollout rows) roll out")
    max_failed: float = Field(0.1, ge=0, le=1, description="largest share of pictures without a score; above it the run stops")

    @model_validator(mode="after")
    def _check(self) -> "Rewards":
        for name, weight in self.train.items():
            if weight == 0:
                raise UserError(f"reward.train: the weight of {shown(name)} is 0: put it into reward.watch, or leave it out")
        if self.aggregate == "mean_advantages" and (total := sum(self.train.values())) <= 0:
            raise UserError(
                f"reward.aggregate=mean_advantages divides by the sum of the weights, {total:g}: make it positive, or set "
                "reward.aggregate=advantages"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, value: Any) -> Any:
        return long_reward(value)


def long_reward(value: Any) -> Any:
    """Return the reward section with its short forms, a name or {name: weight}, written out."""
    if isinstance(value, str) or (isinstance(value, dict) and value and not value.keys() & Rewards.model_fields.keys()):
        value = {"train": value}
    if isinstance(value, dict) and isinstance(value.get("train"), str):
        value = value | {"train": {value["train"]: 1.0}}
    return value


class Scouts(Section):
    """Describe drafts of each prompt, of which only some are rolled out in full and trained on (Sol-RL)."""

    count: Annotated[int, Field(ge=2, le=MOST_SAMPLES)] = Field(96, description="M, drafts of each prompt")
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(6, description="transitions of a draft")
    select: Selection = Field(
        "best_worst", description="which drafts: the best and the worst, those furthest from the mean, or random ones"
    )
    fp8: bool = Field(False, description="products of the drafts in 8 bits")


class Optimizer(Section):
    """Describe the optimizer: AdamW, its gradients clipped by their norm."""

    name: Literal["adamw", "adamw_8bit"] = Field("adamw", description="adamw_8bit keeps its states in 8 bits, by bitsandbytes")
    lr: float = Field(1e-4, gt=0, description="learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    warmup: Times = Field(0, description="optimizer steps of linear warm-up")
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="how the rate falls, to 0 at the end of `iterations`: not at all, on a line, or on half a cosine"
    )


class Ema(Section):
    """Describe the moving average of the trained weights, which is evaluated and exported."""

    decay: float = Field(0.95, ge=0, lt=1, description="share of the old average that stays at an optimizer step")


class Evaluation(Section):
    """Describe the evaluations: on fixed prompts and seeds, by the averaged weights."""

    every: Times = Field(0, description="iterations between evaluations; 0 = before and after training only")
    prompts: Positive = Field(64, description="number of evaluation prompts, the first of prompts.eval_path")
    skip: Times = Field(0, description="prompts of prompts.eval_path that are left out before these")
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="pictures of each evaluation prompt")
    num_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = Field(
        None, description="transitions of the sampling; null = method.num_steps"
    )
    solver: SolverName = Field("dpmpp_2m", description="solver of the sampling")
    height: Pixels | None = Field(None, description="height in pixels; null = the model's, as in training")
    width: Pixels | None = Field(None, description="width in pixels; null = the model's, as in training")
    num_frames: Frames | None = Field(None, description="frames of a video; null = the model's, as in training")
    guidance_scale: float | None = Field(
        None, description="input of a guidance-distilled model; null = the model's, as in training"
    )
    cfg: Annotated[float, Field(ge=1)] | None = Field(
        None, description="classifier-free guidance, 1 = off; null = the model's, as in training"
    )
    gallery: Positive = Field(8, description="prompts whose pictures the report shows")
    best: Name | None = Field(
        None,
        description="measure by which the best weights are kept in best/; -NAME where less is better; "
        "null = the first watched reward",
    )
    early_stop: float | None = Field(
        None,
        gt=0,
        description="stop when the trained reward has risen this many stds (over pictures, before training) "
        "more than a watched reward; null = never",
    )

    def model_changes(self) -> dict[str, Any]:
        """Return the settings of the model that are others than in training."""
        return self.model_dump(include={"height", "width", "num_frames", "guidance_scale", "cfg"}, exclude_none=True)


class Batch(Section):
    """Describe how many rows a device takes at once; this changes speed and memory, never the result."""

    rollout: Positive = Field(96, description="rows of one forward of the rollout")
    update: Positive = Field(64, description="rows of one forward-backward")
    decode: Positive = Field(16, description="latents decoded at once")
    keep_on: Literal["device", "cpu"] = Field("device", description="memory that keeps the rollout until the update")


class Trackers(Section):
    """Describe where the figures, pictures and settings of a run go beside its directory.

    Short form: trackers: [NAME, ...] for trackers.use.
    """

    use: list[Literal["tensorboard", "wandb", "mlflow", "swanlab", "trackio"]] = Field(
        [], description="tensorboard, wandb, mlflow, swanlab, trackio; each is an extra of the package"
    )
    project: Name = Field("neighbor-grpo", description="project or experiment in which the run appears")
    name: Name | None = Field(None, description="name of the run there; null = the last two parts of run_dir")
    tags: list[Name] = Field([], description="tags of the run there")
    offline: bool = Field(False, description="write into RUN/trackers and send nothing")
    rollouts: Times = Field(10, description="iterations between pictures of a rollout's first group; 0 = none")

    @model_validator(mode="after")
    def _check(self) -> "Trackers":
        if twice := next((name for name in self.use if self.use.count(name) > 1), None):
            raise ValueError(f"trackers.use names {twice} twice: leave out one")
        return self

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, value: Any) -> Any:
        return long_trackers(value)


def long_trackers(value: Any) -> Any:
    """Return the trackers section with its short forms, a name or a list of names, written out."""
    return {"use": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value
