"""The checks before a run, on its real model and reward, in the order in which they are shown."""

import os
import resource
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from neighbor_grpo.config import Config, method_name
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.policy import NoGradientError
from neighbor_grpo.planning.machine import memory_of
from neighbor_grpo.rewards.score import RewardError
from neighbor_grpo.run.findings import Finding
from neighbor_grpo.training.doctor.calls import sampling
from neighbor_grpo.training.doctor.gradients import gradient_findings
from neighbor_grpo.training.doctor.patient import Patient, admitted
from neighbor_grpo.training.doctor.rewards import reward_findings, teaches
from neighbor_grpo.training.doctor.texts import encoder_findings
from neighbor_grpo.training.errors import NotFiniteError

LIBRARIES = ("neighbor-grpo", "torch", "diffusers", "transformers", "peft", "accelerate")
NVIDIA = Path("/dev/nvidiactl")
FULL = 0.95  # share of the memory; the rest is for the context, for workspaces and for fragmentation


def findings_before(config: Config, minutes: float) -> Iterator[Finding]:
    """Check a configuration; `minutes` bounds the search for a signal in the gradients, the longest check."""
    try:
        with admitted(config) as patient:
            yield from _in_order(patient, 60 * minutes)
    except NoGradientError:
        yield Finding("frozen", "error", "the loss does not depend on any trained weight", 0.0, 0.0)
    except NotFiniteError as error:
        yield Finding("diverged", "error", str(error))
    except RewardError as error:
        yield Finding("scorer_failures", "error", str(error), None, config.reward.max_failed)
    except UserError as error:
        if not any(part in str(error) for part in ("'tokenizer", "'text_encoder")):  # a mistake in the configuration
            raise
        yield Finding("text_encoder", "error", str(error))


def _in_order(patient: Patient, seconds: float) -> Iterator[Finding]:
    yield _versions(patient)
    yield from encoder_findings(patient.parts.model, patient.parts.prompts)
    yield sampling(patient.parts.model, patient.parts.prompts[:2])
    found = reward_findings(patient)
    yield from found
    if patient.seen and not teaches(patient):
        return  # every gradient is zero
    yield from gradient_findings(patient, seconds, all(finding.verdict != "error" for finding in found))
    yield _memory(patient)


def _versions(patient: Patient) -> Finding:
    """Name the versions and the device; find a GPU that torch does not see."""
    device = patient.parts.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    known = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    text = f"{method_name(patient.config.method)} on {device.type} ({name}) in {patient.parts.model.dtype}; {known}"
    if NVIDIA.exists() and not torch.cuda.is_available():
        return Finding("versions", "warning", f"this machine has an NVIDIA GPU that torch does not see: {text}", 0.0, 1.0)
    return Finding("versions", "ok", text)


def _memory(patient: Patient) -> Finding:
    """Compare the largest use of memory so far with the device and with the plan."""
    device, planned = patient.parts.model.device, patient.parts.estimate.peak
    limit = FULL * memory_of(device)
    if device.type == "cuda":
        used = float(torch.cuda.max_memory_allocated(device))
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # libraries and encoders too
    text = (
        f"{used / 1e9:.2f} GB were used, the plan says {planned / 1e9:.2f} GB, and the device has {limit / FULL / 1e9:.1f} GB"
    )
    return Finding("memory", "warning" if used > limit else "ok", text, used, limit)
