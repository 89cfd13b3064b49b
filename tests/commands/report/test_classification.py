"""What a report says of classifiers: figures that are scikit-learn's, and the samples to look at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn import metrics

from swinv2_tasks.callbacks.class_tables import write_scores
from swinv2_tasks.commands.report.blocks import Chart
from swinv2_tasks.commands.report.classification import evaluation_sections
from swinv2_tasks.commands.report.run import Run, read_run
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.predictions import SingleLabelResults, read_single_label, rounded, write_single_label
from tests.helpers import runs, tiny
from tests.helpers.checkpoints import write_randomized
from tests.helpers.reported import block, examples, picture_bytes, rows
from tests.helpers.runs import evaluate, from_last
from tests.helpers.tagged import write_tagged

IDS = [*tiny.COLORS]


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of random weights, which are wrong about many images."""
    folder = tmp_path_factory.mktemp("evaluated")
    poor = write_randomized(folder / "poor.ckpt", trained, tiny.new_task())
    return evaluate(folder, f"--ckpt_path={poor}")


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of what a report reads of an evaluation."""
    target.mkdir(parents=True)
    for name in ("config.yaml", "val_classes.json", "val_predictions.csv"):
        shutil.copy(folder / name, target)
    return target


def write_run(folder: Path, results: SingleLabelResults, names: list[str]) -> Run:
    """The folder of an evaluation that has predicted this."""
    config = {"model": {"class_path": "swinv2_tasks.tasks.ClassificationTask"}, "data": {"init_args": {}}}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_scores(folder / "val_classes.json", results, names, names, "images")
    write_single_label(folder / "val_predictions.csv", results, names, names)
    return read_run(folder)


def synthetic_results(paths: list[str], classes: int, seed: int = 0) -> SingleLabelResults:
    """Predictions of which most are right, the others a class beside the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, len(paths))
    first = np.where(rng.random(len(paths)) < 0.6, labels, labels ^ 1) % classes
    scores = rounded(0.5 + rng.random(len(paths)) / 2)
    top = np.stack([first, (first + 1) % classes], axis=1)
    own = np.where(first == labels, scores, rounded(1 - scores))
    return SingleLabelResults(
        paths, labels, own, rounded(-np.log(own)), top, np.stack([scores, rounded(1 - scores)], axis=1)
    )


# ---- one label


def test_its_numbers_are_those_of_the_files_and_scikit_learns_to_the_last_digit(evaluated: Path) -> None:
    sections = evaluation_sections(read_run(evaluated), "val")
    scores = json.loads((evaluated / "val_classes.json").read_text())
    numbers = {number.name: number.value for number in block(sections, "Scores").numbers}
    assert numbers == {
        "top-1": scores["top1"],
        "top-5": scores["top5"],
        "ECE": scores["ece"],
        "macro F1": scores["macro_f1"],
        "images": 12,
    }
    results = read_single_label(evaluated / "val_predictions.csv", IDS)
    assert numbers["top-1"] == metrics.accuracy_score(results.labels, results.predicted) < 1
    precision, recall, f1, number = metrics.precision_recall_fscore_support(
        results.labels, results.predicted, labels=[0, 1, 2], zero_division=np.nan
    )
    assert numbers["macro F1"] == np.nanmean(f1)
    shown = rows(block(sections, "Classes"))
    assert [row["class"] for row in shown] == list(tiny.NAMES.values())
    for k, row in enumerate(shown):
        expected = [None if np.isnan(values[k]) else values[k] for values in (precision, recall, f1)]
        assert [row["precision"], row["recall"], row["F1"], row["images"]] == [*expected, number[k]]

    confusion = metrics.confusion_matrix(results.labels, results.predicted, labels=[0, 1, 2])
    for row in rows(block(sections, "Most confused classes")):
        true, predicted = (list(tiny.NAMES.values()).index(row[name]) for name in ("true", "predicted"))
        assert row["images"] == confusion[true, predicted]
        assert row["share of the true class"] == confusion[true, predicted] / confusion[true].sum()


def test_mistakes_are_the_surest_ones_and_right_ones_the_least_probable(evaluated: Path) -> None:
    sections = evaluation_sections(read_run(evaluated), "val")
    results = read_single_label(evaluated / "val_predictions.csv", IDS)
    names = [Path(path).name for path in results.paths]
    by_score = sorted((k for k in range(12) if not results.is_right[k]), key=lambda k: -results.scores[k, 0])
    mistakes = block(sections, "Most confident mistakes").examples
    assert [example.title for example in mistakes] == [names[k] for k in by_score]
    k, labels = by_score[0], list(tiny.NAMES.values())
    assert mistakes[0].lines == [
        f"labeled {labels[results.labels[k]]} {results.label_scores[k]:.1%}",
        f"predicted {labels[results.predicted[k]]} {results.scores[k, 0]:.1%}",
    ]
    by_label = sorted((k for k in range(12) if results.is_right[k]), key=lambda k: results.label_scores[k])
    hardest = block(sections, "Hardest right ones").examples
    assert [example.title for example in hardest] == [names[k] for k in by_label[:6]]
    assert {example.frame for example in hardest} == {"right"} and {example.frame for example in mistakes} == {"wrong"}
    assert not any("gray" in section.note for section in sections)
    assert picture_bytes(sections) < 2.6e6


@pytest.mark.parametrize("classes", [40, 150])
def test_many_classes_are_clustered_and_images_that_are_gone_are_gray(classes: int, tmp_path: Path) -> None:
    """The pairs are classes 2k and 2k + 1."""
    results = synthetic_results([f"gone/{k}.jpg" for k in range(20 * classes)], classes)
    names = [f"class {k}" for k in range(classes)]
    sections = evaluation_sections(write_run(tmp_path / "run", results, names), "val")
    matrix = block(sections, "Confusion matrix")
    assert isinstance(matrix, Chart) and "stand side by side" in matrix.note and len(matrix.svg) < 200_000
    assert ("class 7" in matrix.svg) == (classes <= 100)
    pairs = rows(block(sections, "Most confused classes"))
    numbers = [[int(str(row[name]).split()[1]) for name in ("true", "predicted")] for row in pairs]
    assert numbers and all(true == predicted ^ 1 for true, predicted in numbers)
    gone = len({example.title for example in examples(sections)})
    assert any(f"{gone} images cannot be read any more and are shown gray." in section.note for section in sections)


def test_pictures_of_large_images_are_few_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{k}.png") for k in range(60)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(path)
    run = write_run(tmp_path / "run", synthetic_results(paths, 4), list("abcd"))
    assert len(examples(evaluation_sections(run, "val"))) <= 48
    assert picture_bytes(evaluation_sections(run, "val")) < 2.6e6


# ---- label errors


@pytest.mark.slow
def test_of_ten_planted_label_errors_among_500_images_nine_are_among_the_first_30(tmp_path: Path) -> None:
    """A model that was trained on right labels, and images that lie in the wrong folder."""
    root = tiny.write_images(tmp_path / "data", val=167)
    (root / "val/n03/n03_166.jpg").unlink()
    run = runs.fit(tiny.write_config(tmp_path / "tiny.yaml", root, trainer={"max_epochs": 8}), tmp_path / "runs")
    rng = np.random.default_rng(0)
    files = sorted(root.glob("val/*/*.jpg"))
    assert len(files) == 500
    planted = set()
    for k in rng.choice(500, 10, replace=False):
        own = IDS.index(files[k].parent.name)
        files[k].rename(root / "val" / IDS[(own + rng.integers(1, 3)) % 3] / files[k].name)
        planted.add(files[k].name)
    folder = evaluate(tmp_path, from_last(run))
    listed = block(evaluation_sections(read_run(folder), "val"), "Probable label errors").examples
    assert len(listed) <= 30
    assert len({example.title for example in listed} & planted) >= 9


# ---- several labels, videos


def test_several_labels_an_image(tmp_path: Path) -> None:
    root = write_tagged(tmp_path / "data")
    config = tiny.write_config(tmp_path / "tiny.yaml", root, trainer={"max_epochs": 1})
    content = yaml.safe_load(config.read_text())
    del content["data"]["init_args"]["class_names"]
    config.write_text(yaml.safe_dump(content))
    folder = runs.fit(config, tmp_path / "runs")
    sections = evaluation_sections(read_run(folder), "val")
    scores = json.loads((folder / "val_classes.json").read_text())
    numbers = {number.name: number.value for number in block(sections, "Scores").numbers}
    assert (numbers["mAP"], numbers["micro F1"]) == (scores["map"], scores["micro_f1"])
    assert numbers["best micro F1"] == max(filter(None, scores["f1_curve"]["micro_f1"]))
    assert [row["AP"] for row in rows(block(sections, "Classes"))] == [row["ap"] for row in scores["classes"]]
    assert "micro F1" in block(sections, "F1 over the threshold").svg
    shown = block(sections, "Worst mistakes").examples
    assert len(shown) == 16
    assert all(line.partition(":")[0] in ("missed", "wrong", "right", "no class") for e in shown for line in e.lines)


def test_videos_are_shown_by_four_frames(trained_run: Callable[[str], Path]) -> None:
    sections = evaluation_sections(read_run(trained_run("video")), "val")
    shown = examples(sections)
    assert shown and all(example.title.endswith(".mp4") for example in shown)
    assert any(section.note == "Of each video four frames, in reading order." for section in sections)
    assert {number.name for number in block(sections, "Scores").numbers} >= {"top-1", "videos"}


# ---- files


def test_what_is_missing_is_said_with_the_command_that_writes_it(evaluated: Path, tmp_path: Path) -> None:
    folder = copy_of(evaluated, tmp_path / "run")
    (folder / "val_predictions.csv").unlink()
    (section,) = evaluation_sections(read_run(folder), "val")
    assert f"val_predictions.csv: swinv2-tasks validate --ckpt_path {folder} writes it" in section.note
    assert [each.title for each in section.blocks] == ["Scores", "Classes"]
    (folder / "val_classes.json").unlink()
    (section,) = evaluation_sections(read_run(folder), "val")
    assert "val_classes.json" in section.note and not section.blocks


SHORT_CURVE = json.dumps(
    {
        "map": 0.5,
        "macro_f1": 0.5,
        "micro_f1": 0.5,
        "threshold": 0.5,
        "classes": [{"id": 1, "name": "a", "ap": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}],
        "f1_curve": {"thresholds": [0, 1], "micro_f1": [0.5], "macro_f1": [0.5, 0.5]},
    }
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val_classes.json", '{"top1": 2}'),
        ("val_classes.json", '{"classes": []}'),
        ("val_classes.json", SHORT_CURVE),
        ("val_predictions.csv", "path,label\n1,2\n"),
    ],
    ids=["share", "no classes", "curve", "columns"],
)
def test_files_that_do_not_fit_are_refused(name: str, content: str, evaluated: Path, tmp_path: Path) -> None:
    folder = copy_of(evaluated, tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        evaluation_sections(read_run(folder), "val")
