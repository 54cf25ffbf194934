"""Trackers: figures, pictures and settings arrive in the real packages, once each, also after a resume.

A package that is not installed is skipped; CI has TensorBoard.
"""

import json
import re
import sqlite3
from importlib.util import find_spec

import pytest
import torch
from accelerate import PartialState

from neighbor_grpo.config import Config
from neighbor_grpo.run.groups import Group
from neighbor_grpo.training.trackers import Trackers, tag

KEY = "reward//tmp/a@1.py:score"
PICTURES = torch.stack([torch.full((2, 3, 16, 16), shade) for shade in (0.25, 0.75)])  # [P, S, 3, H, W]
KINDS = ["tensorboard", "wandb", "mlflow", "swanlab", "trackio"]


def line(iteration):
    return {"iteration": iteration, KEY: iteration / 8, "loss": -1.5} | ({"eval/clip": 0.5} if iteration == 0 else {})


def begun(kind, run, resumed=False, done=0):
    PartialState(cpu=True)  # which accelerate's loggers need
    config = Config(trackers={"use": [kind], "offline": True, "name": "mine", "tags": ["a"], "rollouts": 1}, seed=7)
    return Trackers.begin(config, run, resumed, done)


def send(found, iterations):
    for iteration in iterations:
        if iteration == 0:
            found.evaluation(0, PICTURES, ["a cat", "a dog"])
        found.rollout(iteration, Group("a cat", (PICTURES[0] * 255).byte(), {"clip": [0.1, 0.2]}, [-1, 1]))
        found.figures(line(iteration))
    found.finish(60)
    assert all(not one.thread.is_alive() and not one.failing for one in found.followers)


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    read = EventMultiplexer(size_guidance={"scalars": 0, "images": 0, "tensors": 0}).AddRunsFromDirectory(str(run))
    read.Reload()
    main_run = next(name for name in read.Runs() if name.endswith("tensorboard"))
    scalars = {key: [(e.step, e.value) for e in read.Scalars(main_run, key)] for key in read.Runs()[main_run]["scalars"]}
    images = {key: [e.step for e in read.Images(main_run, key)] for key in read.Runs()[main_run]["images"]}

    hparams = "".join(file.read_text() for file in run.rglob("hparams.yml"))
    return scalars, images, "seed: 7" in hparams


def read_mlflow(run):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run}/trackers/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("neighbor-grpo")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "mine" and found.data.tags["a"] == "true"
    rows = sqlite3.connect(run / "trackers" / "mlflow" / "mlflow.db").execute(
        "select key, step, value from metrics order by step"
    )
    scalars = {}
    for key, step, value in rows:
        scalars.setdefault(key, []).append((step, value))
    files = [file.name for file in (run / "trackers" / "mlflow" / "artifacts").rglob("*.png")]
    images = {
        key: sorted({int(re.search(r"step\W(\d+)", name)[1]) for name in files if re.match(key.replace("/", r"\W"), name)})
        for key in ("evaluation/00", "rollout")
    }
    return scalars, images, found.data.params["seed"] == "7"


def leveldb_log(data, block=32768, header=7):
    """Records of a LevelDB log: blocks of fragments, each with a checksum, its length and its kind."""
    at, parts = header, []  # W&B's own header comes first
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts = [data[at + 7 : at + 7 + length]] if kind in (1, 2) else [*parts, data[at + 7 : at + 7 + length]]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            yield b"".join(parts)


def read_wandb(run):
    from wandb.proto import wandb_internal_pb2

    scalars, images, seed, ids = {}, {}, False, set()
    for file in sorted(run.rglob("*.wandb")):
        for data in leveldb_log(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            seed |= any(item.key == "seed" and item.value_json == "7" for item in record.config.update)
            ids |= {record.run.run_id} - {""}
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in values.items():
                if key.endswith("/_type"):
                    images.setdefault(key.removesuffix("/_type"), []).append(values["_step"])
                elif isinstance(value, int | float) and not key.startswith("_"):
                    scalars.setdefault(key, []).append((values["_step"], value))
    assert len(ids) == 1
    return scalars, images, seed


def read_trackio(run):
    (file,) = [file for file in (run / "own").rglob("*.db") if "neighbor" in file.name]
    rows = sqlite3.connect(file).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, *_ in rows} == {"mine"}
    scalars, images = {}, {}
    for _, step, text in rows:
        for key, value in json.loads(text).items():
            if isinstance(value, dict):
                images.setdefault(key.rpartition("/")[0], []).append(step)
            else:
                scalars.setdefault(key, []).append((step, value))
    stored = sqlite3.connect(file).execute("select config from configs").fetchall()
    images = {key: sorted(set(steps)) for key, steps in images.items()}
    return scalars, images, any(json.loads(text)["seed"] == 7 for (text,) in stored)


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb, "trackio": read_trackio}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "tensorboard")) for kind in KINDS])
def test_everything_arrives_once_also_after_a_resume(kind, tmp_path, monkeypatch):
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "own"))  # read when trackio is imported
    send(begun(kind, tmp_path), range(3))
    again = begun(kind, tmp_path, resumed=True, done=1)  # from iteration 1 on, iteration 2 is trained once more
    send(again, range(1, 5))
    known = json.loads((tmp_path / "trackers" / f"{kind}.json").read_text())
    assert known["sent"] == {"figures": 4, "evaluation": 0, "rollout": 4}
    if kind == "swanlab":  # whose files have no documented reader
        assert any((tmp_path / "trackers" / "swanlab").rglob("*"))
        return
    scalars, images, has_settings = READ[kind](tmp_path)
    assert [step for step, _ in scalars[tag(KEY)]] == list(range(5)), scalars
    assert all(value == pytest.approx(step / 8) for step, value in scalars[tag(KEY)])
    assert scalars["eval/clip"] == [(0, 0.5)] and len(scalars["loss"]) == 5
    assert images["evaluation/00"] == [0] and images["rollout"] == list(range(5))
    assert has_settings
