"""Trainings on images that are not RGB, through the command line: fit, resume, validate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from swinv2_tasks.cli.main import main
from tests.helpers import objects
from tests.helpers.tiny import BACKBONE, QUIET, as_config


def numbers(value: float, channels: int) -> str:
    return str([value] * channels)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack", compression="deflate")


def write_classes(root: Path, shape: tuple[int, ...], *endings: str) -> Path:
    """Two classes, of which one is brighter than the other."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for label in (0, 1):
            for k in range(number):
                pixels = rng.integers(label * 30000, 30000 + label * 30000, shape).astype(np.uint16)
                write(root / split / f"c{label}" / f"{k}{endings[k % len(endings)]}", pixels)
    return root


def settings(tmp_path: Path, config: str, channels: int, data: dict[str, Any]) -> list[str]:
    model = {"backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}}}
    overlay = tmp_path / "overlay.yaml"
    trainer = {"max_epochs": 1, **QUIET}
    init_args = {"num_workers": 0, **data}
    overlay.write_text(
        yaml.safe_dump({"trainer": trainer, "model": {"init_args": model}, "data": {"init_args": init_args}})
    )
    normalization = (f"--data.mean={numbers(0.4, channels)}", f"--data.std={numbers(0.3, channels)}")
    return [
        f"--config={config}",
        f"--config={overlay}",
        f"--data.channels={channels}",
        *normalization,
        f"--runs={tmp_path}",
    ]


def fit_resume_validate_predict(arguments: list[str], root: Path, tmp_path: Path, name: str, source: Path) -> Path:
    """All four commands; the folder of the predictions."""
    assert main(["fit", *arguments, f"--data.root={root}"]) == 0
    run = tmp_path / name / "0"
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    channels = recorded["data"]["init_args"]["channels"]
    assert recorded["model"]["init_args"]["backbone"]["init_args"]["in_channels"] == channels
    longer = ["--trainer.max_epochs=2", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    assert main(["fit", *arguments, f"--data.root={root}", *longer]) == 0
    assert main(["validate", f"--ckpt_path={run}", f"--runs={tmp_path}"]) == 0
    output = tmp_path / "predictions"
    assert main(["predict", f"--ckpt_path={run}", f"--data.source={source}", f"--output={output}"]) == 0
    return output


@pytest.mark.slow
def test_classes_of_five_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    root = write_classes(tmp_path / "data", (40, 36, 5), ".npy")
    data = {"image_size": 32, "batch_size": 4}
    arguments = settings(tmp_path, "imagenet.yaml", 5, data)
    output = fit_resume_validate_predict(arguments, root, tmp_path, "imagenet", root / "val")
    assert "RandAugment left out" in caplog.text
    assert (output / "predictions.csv").read_text().count(".npy") == 4
    assert (output / "contact_sheet.png").is_file()

    capsys.readouterr()
    status = main(
        ["validate", f"--ckpt_path={tmp_path}/imagenet/0", "--data.channels=1", "--data.mean=[0.4]", "--data.std=[0.3]"]
    )
    assert status == 1 and "model.backbone.in_channels is 5, but the data's images have 1" in capsys.readouterr().err


@pytest.mark.slow
def test_classes_of_gray_images_of_16_bits(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", (40, 36), ".tif", ".png")
    arguments = settings(tmp_path, "imagenet.yaml", 1, {"image_size": 32, "batch_size": 4})
    output = fit_resume_validate_predict(arguments, root, tmp_path, "imagenet", root / "val")
    assert len((output / "predictions.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_scenes_of_four_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, number in (("training", 4), ("validation", 2)):
        for k in range(number):
            labels = np.repeat([[0, 1]], 20, axis=1).repeat(36, axis=0).astype(np.uint8)
            pixels = (labels[..., None].astype(int) * 2000 + rng.integers(0, 2000, (36, 40, 4))).astype(np.uint16)
            folder = root / "images" / split
            folder.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / f"{k}.tif", pixels, photometric="minisblack", planarconfig="contig")
            write(root / "annotations" / split / f"{k}.png", labels)
    (root / "classes.txt").write_text("dark\nbright\n")
    data = {"crop_size": 32, "resize": [64, 32], "batch_size": 2, "value_range": [0, 4000], "background": "class"}
    arguments = settings(tmp_path, "ade20k.yaml", 4, data)
    output = fit_resume_validate_predict(arguments, root, tmp_path, "ade20k", root / "images/validation")
    assert len([*(output / "overlays").iterdir()]) == 2


@pytest.mark.slow
def test_masked_images_of_five_channels(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", (5, 40, 36), ".npy")
    data = {"image_size": 32, "batch_size": 4, "mask_patch_size": 8, "val_share": 0.2}
    arguments = settings(tmp_path, "simmim.yaml", 5, data)
    output = fit_resume_validate_predict(arguments, root, tmp_path, "simmim", root / "val")
    assert len([*(output / "visualizations").rglob("*.png")]) == 4


def test_means_must_be_of_the_channels(tmp_path: Path, capsys: Any) -> None:
    assert main(["fit", "--config=imagenet.yaml", "--data.channels=5", f"--data.root={tmp_path}"]) == 1
    assert "data.mean has 3 values, data.channels is 5" in capsys.readouterr().err


@pytest.mark.slow
def test_objects_on_images_of_four_channels(tmp_path: Path) -> None:
    """COCO's layout with TIFF files of 16 bits instead of photographs."""
    root = objects.write_objects(tmp_path / "data", train=4, val=2)
    for split in ("train", "val"):
        for image in (root / f"{split}2017").iterdir():
            pixels = np.asarray(Image.open(image)).astype(np.uint16) * 257
            write_tiff(image.with_suffix(".tif"), np.dstack([pixels, pixels[..., :1]]))
            image.unlink()
        objects.change(root, split, name_tiff_files)
    data = {**as_config(objects.DATA), "batch_size": 2}
    arguments = settings(tmp_path, "coco.yaml", 4, data)
    arguments.append("--model.detector.init_args=" + json.dumps(objects.DETECTOR))
    output = fit_resume_validate_predict(arguments, root, tmp_path, "coco", root / "val2017")
    assert len([*(output / "visualizations").iterdir()]) == 2


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """(H, W, channels), interleaved."""
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


def name_tiff_files(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["file_name"] = str(Path(image["file_name"]).with_suffix(".tif"))


# ---- the check of a dataset


def check(tmp_path: Path, task: str, root: Path, *arguments: str) -> dict[str, Any]:
    """What the report of a check says, read in the command's own process; the checks by their names."""
    folder = tmp_path / "check"
    main(["data", "check", task, str(root), f"--output={folder}", "--workers=0", *arguments])
    report: dict[str, Any] = json.loads((folder / "check.json").read_text())
    return report


def files_of(report: dict[str, Any], name: str) -> list[str]:
    (findings,) = [entry["findings"] for entry in report["checks"] if entry["check"] == name] or [[]]
    return [Path(finding["file"]).name for finding in findings]


def test_mean_and_deviation_of_five_channels_are_measured(tmp_path: Path, capsys: Any) -> None:
    """As the values are read: a model whose data are normalized with them sees a mean of 0 and a deviation of 1."""
    root = write_classes(tmp_path / "data", (40, 36, 5), ".npy")
    report = check(tmp_path, "imagenet", root, "--data.channels=5", "--data.value_range=[0,50000]")
    values = [np.load(path).reshape(-1, 5) / 50000 for path in sorted(root.glob("*/*/*.npy"))]
    mean = np.mean([x.mean(0) for x in values], axis=0)
    deviation = np.sqrt(np.mean([(x**2).mean(0) for x in values], axis=0) - mean**2)
    assert report["mean"] == pytest.approx(mean, abs=1e-4)
    assert report["std"] == pytest.approx(deviation, abs=1e-4)
    assert report["totals"] == {"error": 0, "warning": 0, "note": 0}
    assert "--data.mean, --data.std" in capsys.readouterr().out
    assert "5 channels" in (tmp_path / "check" / "check.html").read_text()


def test_other_channels_and_copies_are_told(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", (40, 36, 5), ".npy")
    for path in [*root.rglob("*.npy")]:
        write_tiff(path.with_suffix(".tif"), np.load(path))
        path.unlink()
    write_tiff(root / "train/c0/0.tif", np.zeros((40, 36, 4), np.uint16))
    values = tifffile.imread(root / "train/c0/1.tif")
    np.save(root / "val/c0/copy.npy", values)  # the same values in another format
    report = check(tmp_path, "imagenet", root, "--data.channels=5")
    assert files_of(report, "unreadable_file") == ["0.tif"]
    assert files_of(report, "same_pixels_across_splits") in (["copy.npy"], ["1.tif"])
    # What was measured of other channels is not taken for these.
    again = check(tmp_path, "imagenet", root, "--data.channels=4")
    assert len(files_of(again, "unreadable_file")) == 12
