"""ImageNet's tars, read in place: the same samples as class folders give, with labels from each kind of list."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from tests.helpers import runs
from tests.helpers.archives import batches, class_images, write_tar
from tests.helpers.runs import last_checkpoint
from tests.helpers.tiny import new_data, write_config, write_images

CLASSES = ("n00000001", "n00000002", "n00000003")
WORDS = ("red apple, fruit", "green leaf", "blue sea")
NUMBERS = (2, 3, 1)
"""Of the classes in the development kit: another order than that of their ids."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose validation images are called as ImageNet's, in an order that mixes the classes."""
    root = write_images(tmp_path_factory.mktemp("images") / "images", classes=CLASSES)
    (root / "classes.csv").unlink()
    for number, index in enumerate(np.random.default_rng(0).permutation(12), start=1):
        class_id = CLASSES[index % 3]
        image = root / "val" / class_id / f"{class_id}_{index // 3}.jpg"
        image.rename(image.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    return root


def in_order(folders: Path) -> list[tuple[str, Path]]:
    """The validation images and their classes, by their numbers."""
    return sorted(class_images(folders / "val"), key=lambda pair: pair[1].name)


def class_tar(folder: Path, path: Path) -> Path:
    """The tar of a class, in no particular order."""
    return write_tar(path, [(image.name, image.read_bytes()) for image in sorted(folder.iterdir(), reverse=True)])


def write_train(folders: Path, root: Path) -> Path:
    inner = []
    for folder in sorted((folders / "train").iterdir(), reverse=True):
        tar = class_tar(folder, root.parent / "parts" / f"{folder.name}.tar")
        inner.append((tar.name, tar.read_bytes()))
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    return root


def write_val(folders: Path, root: Path) -> Path:
    images = reversed(in_order(folders))
    write_tar(root / "ILSVRC2012_img_val.tar", [(image.name, image.read_bytes()) for _, image in images])
    return root


def devkit(folders: Path) -> dict[str, bytes]:
    """The files of the development kit, in which a class without images of its own is among the others."""
    rows = [(NUMBERS[k], CLASSES[k], WORDS[k], 0) for k in range(3)] + [(4, "n09999999", "thing", 3)]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    content = io.BytesIO()
    savemat(content, {"synsets": np.array(rows, dtype=fields)[:, None]}, do_compression=True)
    numbers = [NUMBERS[CLASSES.index(class_id)] for class_id, _ in in_order(folders)]
    truth = "".join(f"{number}\n" for number in numbers)
    return {"ILSVRC2012_validation_ground_truth.txt": truth.encode(), "meta.mat": content.getvalue()}


def packed_devkit(folders: Path, root: Path) -> None:
    members = [(f"ILSVRC2012_devkit_t12/data/{name}", content) for name, content in devkit(folders).items()]
    tar = write_tar(root.parent / "devkit.tar", [("ILSVRC2012_devkit_t12/readme.txt", b"x" * 5000), *members])
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))


def unpacked_devkit(folders: Path, root: Path) -> None:
    for name, content in devkit(folders).items():
        path = root / "ILSVRC2012_devkit_t12" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def kaggle(folders: Path, root: Path) -> None:
    rows = [f"{image.stem},{class_id} 1 2 30 40 {class_id} 5 5 9 9" for class_id, image in in_order(folders)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def ids_in_order(folders: Path, root: Path) -> None:
    lines = [class_id for class_id, _ in in_order(folders)]
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(lines) + "\n")


def indices(folders: Path, root: Path) -> None:
    lines = [f"{image.name} {CLASSES.index(class_id)}" for class_id, image in in_order(folders)]
    (root / "val.txt").write_text("\n".join(lines))


def names(folders: Path, root: Path) -> None:
    lines = [f"val/{image.name},{class_id}" for class_id, image in in_order(folders)]
    (root / "ILSVRC2012_val.txt").write_text("\n".join(lines))


LABELS: dict[str, Callable[[Path, Path], None]] = {
    "development kit": packed_devkit, "unpacked development kit": unpacked_devkit, "Kaggle's table": kaggle,
    "ids in order": ids_in_order, "indices": indices, "ids": names,
}  # fmt: skip


@pytest.mark.parametrize("labels", LABELS)
def test_the_batches_are_those_of_class_folders(folders: Path, tmp_path: Path, labels: str, capsys: Any) -> None:
    root = write_val(folders, write_train(folders, tmp_path / "imagenet"))
    LABELS[labels](folders, root)
    data, plain = new_data(root), new_data(folders)
    ours, theirs = batches(data), batches(plain)
    output = capsys.readouterr().out
    assert "data.root is read as imagenet-tars: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar" in output
    assert data.class_ids == list(CLASSES)
    assert data.class_names == list(WORDS if "kit" in labels else CLASSES)
    for batch, other in zip(ours[:6], theirs[:6], strict=True):
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["label"], other["label"])

    # Validation images come by their numbers, as in the tar.
    expected = [(CLASSES.index(class_id), image.read_bytes()) for class_id, image in in_order(folders)]
    assert [(label, path.read()) for path, label in data.samples("val")] == expected  # type: ignore[attr-defined]
    first = data.samples("train")[0][0]
    assert first == f"{root}/ILSVRC2012_img_train.tar/n00000001.tar/n00000001_0.jpg"


def test_tars_of_classes_that_were_unpacked_once(folders: Path, tmp_path: Path, capsys: Any) -> None:
    for split in ("train", "val"):
        for folder in (folders / split).iterdir():
            class_tar(folder, tmp_path / split / f"{folder.name}.tar")
    data, plain = new_data(tmp_path), new_data(folders)
    for batch, other in zip(batches(data), batches(plain), strict=True):
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["label"], other["label"])
    assert "read as imagenet-tars: train/n00000001.tar, …, val/n00000001.tar, …" in capsys.readouterr().out
    write_train(folders, tmp_path)
    with pytest.raises(UserError, match="has the train images twice"):
        new_data(tmp_path).samples("train")


def test_validation_images_alone_are_read(folders: Path, tmp_path: Path) -> None:
    packed_devkit(folders, write_val(folders, tmp_path / "imagenet"))
    data = new_data(tmp_path / "imagenet")
    data.setup("validate")
    assert data.class_names == list(WORDS)
    assert [label for _, label in data.samples("val")] == [CLASSES.index(name) for name, _ in in_order(folders)]


def test_real_labels_go_by_the_numbers(folders: Path, tmp_path: Path) -> None:
    root = write_val(folders, write_train(folders, tmp_path / "imagenet"))
    packed_devkit(folders, root)
    (root / "real.json").write_text(json.dumps([[k % 3, (k + 1) % 3] for k in range(12)]))
    data = new_data(root, real_labels="real.json")
    assert [label for _, label in data.samples("val")] == [[k % 3, (k + 1) % 3] for k in range(12)]


def test_folders_beside_tars_are_ambiguous(folders: Path, tmp_path: Path) -> None:
    root = write_train(folders, tmp_path / "imagenet")
    (root / "train" / "n00000001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"as folders \(train/CLASS/\) or as imagenet-tars \(ILSVRC2012_img_train"):
        new_data(root).samples("train")


# ---- what is refused


def test_labels_must_be_there_for_every_image(folders: Path, tmp_path: Path) -> None:
    root = write_val(folders, write_train(folders, tmp_path / "imagenet"))
    with pytest.raises(UserError, match=r"img_val\.tar has no labels in it\. Put beside it the development kit"):
        new_data(root).samples("val")
    indices(folders, root)
    lines = (root / "val.txt").read_text().splitlines()
    (root / "val.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match=r"val\.txt has no label for .*img_val\.tar/ILSVRC2012_val_00000001\.JPEG"):
        new_data(root).samples("val")
    (root / "val.txt").write_text("\n".join([f"{lines[0].split()[0]} 3", *lines[1:]]))
    with pytest.raises(UserError, match="has the label 3, but there are 3 classes"):
        new_data(root).samples("val")
    (root / "val.txt").write_text("a b c\n")
    with pytest.raises(UserError, match=r"val\.txt, line 1: expected an image and its label"):
        new_data(root).samples("val")


def test_a_broken_development_kit_is_reported(folders: Path, tmp_path: Path) -> None:
    root = write_val(folders, write_train(folders, tmp_path / "imagenet"))
    unpacked_devkit(folders, root)
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    content = (kit / "meta.mat").read_bytes()
    for broken in (b"", content[:200], b"\x80\x04K\x01.", content[:140] + b"\xff" * 40 + content[180:]):
        (kit / "meta.mat").write_bytes(broken)
        with pytest.raises(UserError, match=r"Cannot read meta\.mat"):
            new_data(root).samples("val")
    (kit / "meta.mat").write_bytes(content)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n" * 11 + "4\n")  # a class that has no images
    with pytest.raises(UserError, match=r"numbers that are no class of meta\.mat: 4"):
        new_data(root).samples("val")
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match="which is not beside it"):
        new_data(root).samples("val")

    (kit / "ILSVRC2012_validation_ground_truth.txt").unlink()
    packed = root / "ILSVRC2012_devkit_t12.tar.gz"
    packed_devkit(folders, root)
    whole = packed.read_bytes()
    tar = write_tar(tmp_path / "other.tar", [("a", b"x")])
    for broken in (whole[:200], b"", b"no archive", gzip.compress(b"x" * 3000)):
        packed.write_bytes(broken)
        with pytest.raises(UserError, match=r"Cannot read .*devkit_t12\.tar\.gz"):
            new_data(root).samples("val")
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match=r"holds no ILSVRC2012_validation_ground_truth\.txt"):
        new_data(root).samples("val")
    packed.write_bytes(gzip.compress(bytes(2**27)))
    with pytest.raises(UserError, match="has more than 67,108,864 bytes"):
        new_data(root).samples("val")


def test_truncated_tars_are_reported(folders: Path, tmp_path: Path) -> None:
    tar = write_train(folders, tmp_path / "imagenet") / "ILSVRC2012_img_train.tar"
    content = tar.read_bytes()
    for share in (0.2, 0.5, 0.7):
        tar.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=r"img_train\.tar: it is truncated"):
            new_data(tmp_path / "imagenet", val_share=0.5).samples("train")


# ---- the command line


@pytest.mark.slow
def test_a_run_resumes_bitwise_with_workers_and_the_check_names_images(folders: Path, tmp_path: Path) -> None:
    root = write_val(folders, write_train(folders, tmp_path / "imagenet"))
    packed_devkit(folders, root)
    changes = {"init_args": {"num_workers": 1, "class_names": None}}
    config = write_config(tmp_path / "config.yaml", root, trainer={"max_epochs": 2}, data=changes)
    whole = runs.fit(config, tmp_path / "whole")
    part = runs.fit(config, tmp_path / "part", "--trainer.max_steps=4")
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    states = [torch.load(last_checkpoint(run), weights_only=True) for run in (whole, part)]
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
    assert states[0]["swinv2_tasks"]["classes"]["names"] == list(WORDS)

    report = tmp_path / "check.json"
    arguments = ["data", "check", "imagenet", str(root), f"--output={tmp_path / 'report'}", f"--json={report}"]
    main([*arguments, "--workers=1"])
    content = json.loads(report.read_text())
    assert content["splits"] == {"train": 18, "val": 12}
    assert not [check for check in content["checks"] if check["check"].endswith("_file")]
