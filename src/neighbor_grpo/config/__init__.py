"""The configuration of a run: its schema, where its values come from, and the wording of mistakes in it."""

from neighbor_grpo.config.keys import Key, describe
from neighbor_grpo.config.methods import method_name
from neighbor_grpo.config.mistakes import one_line
from neighbor_grpo.config.names import check_names
from neighbor_grpo.config.origins import Difference, settings_lines
from neighbor_grpo.config.presets import Preset, check_family, preset_file, preset_names, read_preset
from neighbor_grpo.config.prompts import evaluation_prompts, training_prompts
from neighbor_grpo.config.reading import read_values, write_values
from neighbor_grpo.config.schema import Config
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
from neighbor_grpo.config.sources import Layer, checked, configured, layers_of, load_config, merge, override, resolve
from neighbor_grpo.models.settings import Lora, Positive, Section

__all__ = [
    "Batch",
    "Config",
    "Difference",
    "Ema",
    "Evaluation",
    "Key",
    "Layer",
    "Lora",
    "Model",
    "Optimizer",
    "Positive",
    "Preset",
    "Prompts",
    "Rewards",
    "Scouts",
    "Section",
    "Trackers",
    "check_family",
    "check_names",
    "checked",
    "configured",
    "describe",
    "evaluation_prompts",
    "layers_of",
    "load_config",
    "merge",
    "method_name",
    "one_line",
    "override",
    "preset_file",
    "preset_names",
    "read_preset",
    "read_values",
    "resolve",
    "settings_lines",
    "training_prompts",
    "write_values",
]
