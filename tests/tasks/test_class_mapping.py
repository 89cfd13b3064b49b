"""Runs with `data.class_mapping`: trained, resumed, evaluated from their checkpoint alone, and predicted with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.tables import read_table
from tests.helpers import motions, objects, scenes, tiny
from tests.helpers.runs import evaluate, fit, from_last, last_checkpoint, predict, read_scores


class Case(NamedTuple):
    """A dataset, a mapping of its classes, and what comes of it."""

    write: Callable[[Path], Path]
    write_config: Callable[..., Path]
    mapping: dict[str, str | None]
    ids: list[Any]
    names: list[str]
    score: str
    predicted: str


CASES = {
    "classification": Case(
        tiny.write_images,
        tiny.write_config,
        {"red apple": "plant", "n02": "plant"},
        ["n01", "n03"],
        ["plant", "blue sea"],
        "val/top1",
        "train/n02/n02_0.jpg",
    ),
    "detection": Case(
        objects.write_objects,
        objects.write_config,
        {"90": "thing", "green disc": "thing", "*": None},
        [5],
        ["thing"],
        "val/box_ap",
        "train2017/train_2.jpg",
    ),
    "segmentation": Case(
        scenes.write_scenes,
        scenes.write_config,
        {"1": None, "blue slate": "stone"},
        [2, 3],
        ["green moss", "stone"],
        "val/miou",
        "images/training/scene_1.jpg",
    ),
    "video": Case(
        motions.write_motions,
        motions.write_config,
        {"goes down": "moves"},
        ["goes down", "goes up"],
        ["moves", "goes up"],
        "val/top1",
        "train/train000001_000000_000001.mp4",
    ),
}

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "classification"]


@pytest.mark.parametrize("name", ["classification", *SLOW])
@pytest.mark.slow
def test_a_mapping_travels_with_a_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    root = case.write(tmp_path / "data")
    changes: dict[str, Any] = {
        "trainer": {"max_epochs": 1},
        "data": {"init_args": {"class_mapping": case.mapping}},
    }
    run = fit(case.write_config(tmp_path / "config.yaml", root, **changes), tmp_path / "runs")
    fit(run / "config.yaml", tmp_path / "runs", "--resume", "--trainer.max_epochs=2")
    record = torch.load(last_checkpoint(run), weights_only=True)["swinv2_tasks"]
    assert record["classes"] == {"ids": case.ids, "names": case.names}

    capsys.readouterr()
    again = evaluate(tmp_path / "runs", from_last(run))
    assert f"classes become {len(case.ids)}" in capsys.readouterr().out
    assert read_scores(again)[case.score] == read_scores(run)[case.score]

    results = predict(tmp_path, from_last(run), f"--data.source={root / case.predicted}")
    check_predictions(name, case, results)


def check_predictions(name: str, case: Case, results: Path) -> None:
    """Makes sure that predictions are of the classes that are left."""
    if name == "segmentation":
        label_map = results / "labels" / "scene_1.png"
        assert set(np.unique(np.asarray(Image.open(label_map)))) <= set(case.ids)
    elif name == "detection":
        file = results / "detections.json"
        assert {entry["category_id"] for entry in json.loads(file.read_text())} <= set(case.ids)
    else:
        (row,) = read_table(results / "predictions.csv")
        assert {row["id1"], row["id2"]} == set(case.ids)
        assert {row["name1"], row["name2"]} == set(case.names)
