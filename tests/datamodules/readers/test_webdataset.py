"""Images in tars with their labels beside them: the same samples as class folders give, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.datamodules.datasets.classification import LabeledImages
from swinv2_tasks.errors import UserError
from tests.helpers import runs
from tests.helpers.archives import batches, class_images, write_tar, write_webdataset
from tests.helpers.runs import from_last, last_checkpoint, predict, read_scores
from tests.helpers.tiny import COLORS, DATA, QUIET, new_data, write_config, write_images

CLASSES = tuple(COLORS)

LABELS: dict[str, Callable[[str], tuple[str, bytes]]] = {
    "numbers": lambda name: ("cls", str(CLASSES.index(name)).encode()),
    "names": lambda name: ("cls", f"{name}\n".encode()),
    "json": lambda name: ("json", json.dumps({"width": 40, "label": name}).encode()),
    "json numbers": lambda name: ("json", json.dumps({"label": CLASSES.index(name)}).encode()),
    "text": lambda name: ("txt", name.encode()),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("images") / "images")
    (root / "classes.csv").unlink()
    return root


@pytest.mark.parametrize("form", LABELS)
def test_the_batches_are_those_of_class_folders(folders: Path, tmp_path: Path, form: str, capsys: Any) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS[form])
    data, plain = new_data(root), new_data(folders)
    ours, theirs = batches(data), batches(plain)
    assert "data.root is read as webdataset: train-000000.tar, train-000001.tar" in capsys.readouterr().out
    assert data.class_ids == (["0", "1", "2"] if "numbers" in form else list(CLASSES))
    assert data.multi_label is False
    assert len(ours) == len(theirs) == 8
    for batch, other in zip(ours, theirs, strict=True):
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["label"], other["label"])


def test_workers_read_the_same(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    alone, together = new_data(root), new_data(root, num_workers=2)
    for data in (alone, together):
        data.setup("validate")
    for batch, other in zip(alone.val_dataloader(), together.val_dataloader(), strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_datasets_are_small_and_picklable(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    data = new_data(root)
    data.setup("fit")
    dataset = data.train_dataset
    assert isinstance(dataset, LabeledImages)
    copied = pickle.loads(pickle.dumps(dataset))
    name = f"{root}/train-000001.tar/sub.folder/n01_00005.jpg"
    assert dataset.sample_id(5) == copied.sample_id(5) == name
    assert copied.samples[5][0].read() == class_images(folders / "train")[5][1].read_bytes()
    number = len(dataset.samples.files)  # type: ignore[attr-defined]
    assert len(pickle.dumps(dataset.samples)) < 4000 + 100 * number


def test_class_lists_name_the_numbers(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["numbers"])
    (root / "classes.txt").write_text("n01 red apple\nn02 green leaf\nn03 blue sea\n")
    data = new_data(root)
    assert data.class_names == ["red apple", "green leaf", "blue sea"]
    assert [label for _, label in data.samples("val")] == [0] * 4 + [1] * 4 + [2] * 4


def test_tars_in_folders_of_splits_and_without_any(folders: Path, tmp_path: Path, capsys: Any) -> None:
    for split in ("train", "val"):
        write_webdataset(folders, tmp_path / "split", LABELS["names"])
        for number, tar in enumerate(sorted((tmp_path / "split").glob(f"{split}-*.tar"))):
            target = tmp_path / "in folders" / split / f"{number}.tar"
            target.parent.mkdir(parents=True, exist_ok=True)
            tar.rename(target)
    data = new_data(tmp_path / "in folders")
    assert [len(data.samples(split)) for split in ("train", "val")] == [18, 12]  # type: ignore[arg-type]

    images = class_images(folders / "train")
    members = [(f"{k}.{end}", content) for k, (name, image) in enumerate(images)
               for end, content in (("jpg", image.read_bytes()), ("cls", name.encode()))]  # fmt: skip
    write_tar(tmp_path / "whole" / "0000.tar", members)
    whole = new_data(tmp_path / "whole")
    assert [len(whole.samples(split)) for split in ("train", "val")] == [15, 3]  # type: ignore[arg-type]
    assert "3 of 18 training images are set aside" in capsys.readouterr().out

    write_tar(tmp_path / "whole" / "val-0000.tar", members)
    with pytest.raises(UserError, match=r"others of which no name says what split they are: 0000\.tar"):
        new_data(tmp_path / "whole").samples("train")


def test_several_labels(folders: Path, tmp_path: Path, capsys: Any) -> None:
    image = class_images(folders / "train")[0][1].read_bytes()
    lists: list[Any] = [["cat", "dog"], ["dog"], [], ["cat"]]
    members = [(f"{k}.{end}", content) for k, labels in enumerate(lists)
               for end, content in (("jpg", image), ("json", json.dumps({"labels": labels}).encode()))]  # fmt: skip
    for split in ("train", "val"):
        write_tar(tmp_path / "json" / f"{split}.tar", members)
    data = new_data(tmp_path / "json")
    assert data.multi_label is True
    assert "1 images have no label" not in (output := capsys.readouterr().out) and "2 images have no label" in output
    assert data.class_ids == ["cat", "dog"]
    data.setup("fit")
    assert [sample["label"].tolist() for sample in data.val_dataset] == [[1, 1], [0, 1], [0, 0], [1, 0]]  # type: ignore[union-attr]
    mapped = new_data(tmp_path / "json", class_mapping={"cat": "animal", "dog": "animal"})
    assert [label for _, label in mapped.samples("train")] == [[0], [0], [], [0]]

    numbers = [(f"{k}.{end}", content) for k, text in enumerate(["0,2", "1", "2 ", "0"])
               for end, content in (("jpg", image), ("cls", text.encode()))]  # fmt: skip
    write_tar(tmp_path / "cls" / "train.tar", numbers)
    assert [
        label
        for _, label in new_data(tmp_path / "cls").source_on_disk.samples("train", new_data(tmp_path / "cls")._classes)
    ] == [[0, 2], [1], [2], [0]]


def test_dropped_classes_leave_their_images_out(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    data, plain = (new_data(path, class_mapping={"n02": None}) for path in (root, folders))
    assert [label for _, label in data.samples("val")] == [label for _, label in plain.samples("val")]
    assert [path.read() for path, _ in data.samples("val")] == [  # type: ignore[attr-defined]
        Path(path).read_bytes() for path, _ in plain.samples("val")
    ]


def test_further_images_of_a_sample_and_notes_are_left_out(folders: Path, tmp_path: Path) -> None:
    image = class_images(folders / "train")[0][1].read_bytes()
    members = [("__meta__", b"{}"), ("._a.jpg", b"x")]
    for key, label in (("a", b"0"), ("b", b"1")):
        members += [(f"{key}.jpg", image), (f"{key}.seg.png", b"x"), (f"{key}.npy", b"x"), (f"{key}.cls", label)]
    write_tar(tmp_path / "train.tar", members)
    data = new_data(tmp_path, val_share=0.5)
    assert [str(path).rpartition("/")[2] for path, _ in data.source_on_disk.samples("train", data._classes)] == [
        "a.jpg",
        "b.jpg",
    ]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.jpg", b""), ("a.cls", b"0"), ("b.jpg", b"")], r"train\.tar/b has no label \(\.jpg; others have \.cls\)"),
        ([("a.jpg", b""), ("b.cls", b"0")], r"train\.tar/a has no label"),
        ([("a.cls", b"0")], r"train\.tar/a has no image"),
        ([("a.jpg", b""), ("a.png", b""), ("a.cls", b"0")], "a has several images"),
        ([("a.jpg", b""), ("a.jpg", b""), ("a.cls", b"0")], "in the tar twice"),
        ([("a.jpg", b""), ("a.cls", b"\xff")], r"a\.cls: it is not UTF-8"),
        ([("a.jpg", b""), ("a.cls", b"0" * 70000)], r"a\.cls: it has 70,000 bytes"),
        ([("a.jpg", b""), ("a.json", b"{")], r"a\.json is not JSON"),
        ([("a.jpg", b""), ("a.json", b'{"caption": "a cat"}')], r"has the keys caption; expected `label`"),
        ([("a.jpg", b""), ("a.json", b'{"label": {"a": 1}}')], "no name or number"),
        ([("a.jpg", b""), ("a.cls", b"")], r"a\.jpg has no label; expected one"),
        ([("README", b"x")], "There are no images in"),
    ],
)
def test_samples_that_are_not_whole_are_named(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(UserError, match=words):
        new_data(tmp_path, class_names=["0", "1"], val_share=0.5).samples("train")


def test_names_with_line_breaks_and_paths_are_names_alone(folders: Path, tmp_path: Path) -> None:
    image = class_images(folders / "train")[0][1].read_bytes()
    write_tar(tmp_path / "train.tar", [(n, c) for n, c in [
        ("../../a\n.jpg", image), ("../../a\n.cls", b"0"), ("/etc/b.jpg", b"no image"), ("/etc/b.cls", b"1"),
    ]])  # fmt: skip
    data = new_data(tmp_path)
    samples = data.source_on_disk.samples("train", data._classes)
    assert samples[0][0] == f"{tmp_path}/train.tar/../../a\n.jpg"
    dataset = LabeledImages(samples, 2, lambda image: torch.zeros(1))
    assert dataset[0]["label"] == 0
    with pytest.raises(UserError, match=r"Cannot read the image .*train\.tar//etc/b\.jpg: its content is not an image"):
        dataset[1]


def test_other_layouts_beside_tars_are_ambiguous(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    (root / "train.csv").write_text("file,label\na.jpg,1\n")
    with pytest.raises(UserError, match=r"as csv \(train\.csv\) or as webdataset \(train-000000\.tar"):
        new_data(root).samples("train")
    assert len(new_data(root, layout="webdataset").samples("train")) == 18
    (root / "train.csv").unlink()
    (root / "train" / "n01").mkdir(parents=True)
    with pytest.raises(UserError, match=r"as folders \(train/CLASS/\) or as webdataset"):
        new_data(root).samples("train")


def test_compressed_and_truncated_tars_are_refused(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    tar = root / "train-000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"train-000001\.tar: it is truncated"):
        new_data(root).samples("train")
    tar.rename(root / "train-000001.tar.gz")
    with pytest.raises(UserError, match=r"train-000001\.tar\.gz is compressed"):
        new_data(root).samples("train")


# ---- the command line


@pytest.mark.slow
def test_runs_are_those_of_class_folders_and_resume(folders: Path, tmp_path: Path) -> None:
    """Training, evaluation, prediction and resuming, with workers."""
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    states = []
    for name, path in (("tars", root), ("folders", folders)):
        workers = {"init_args": {"num_workers": 1, "class_names": None}}
        config = write_config(tmp_path / f"{name}.yaml", path, trainer={"max_epochs": 2}, data=workers)
        run = runs.fit(config, tmp_path / name)
        states.append(torch.load(last_checkpoint(run), weights_only=True)["state_dict"])
    part = runs.fit(tmp_path / "tars.yaml", tmp_path / "part", "--trainer.max_steps=4")
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    states.append(torch.load(last_checkpoint(part), weights_only=True)["state_dict"])
    for state in states[1:]:
        assert all(torch.equal(value, state[key]) for key, value in states[0].items())

    quietly = [f"--trainer.{key}={value}" for key, value in QUIET.items()]
    scores = runs.validate(part, tmp_path, *quietly)
    assert scores["val/loss"] == pytest.approx(read_scores(part)["val/loss"], rel=1e-5)
    output = predict(tmp_path, from_last(part), f"--data.source={folders / 'val'}", *quietly)
    assert len((output / "predictions.csv").read_text().splitlines()) == 13


@pytest.mark.slow
def test_the_check_names_members(folders: Path, tmp_path: Path) -> None:
    images = class_images(folders / "train")
    contents = [image.read_bytes() for _, image in images]
    contents[1] = contents[0]
    contents[2] = contents[2][: len(contents[2]) // 2]
    contents[3] = b""
    members = [(f"{k}.{end}", content) for k, (name, _) in enumerate(images)
               for end, content in (("jpg", contents[k]), ("cls", name.encode()))]  # fmt: skip
    write_tar(tmp_path / "data" / "train-000003.tar", members)
    write_tar(tmp_path / "data" / "val.tar", [("x.png", contents[17]), ("x.cls", b"n03")])
    report = tmp_path / "check.json"
    arguments = ["data", "check", "imagenet", str(tmp_path / "data"), f"--output={tmp_path / 'report'}"]
    for _ in range(2):  # the second time by what was measured before
        assert main([*arguments, f"--json={report}", "--workers=1"]) == 1
        checks = json.loads(report.read_text())["checks"]
        files = {check["check"]: [finding["file"] for finding in check["findings"]] for check in checks}
        tar = f"{tmp_path}/data/train-000003.tar"
        assert files["duplicate_in_split"] == [f"{tar}/1.jpg"]
        assert files["truncated_file"] == [f"{tar}/2.jpg"]
        assert files["empty_file"] == [f"{tar}/3.jpg"]
        assert files["duplicate_across_splits"] == [f"{tmp_path}/data/val.tar/x.png"]
        assert files["wrong_extension"] == [f"{tmp_path}/data/val.tar/x.png"]
        assert "missing_file" not in files
    page = (tmp_path / "report" / "check.html").read_text()
    assert "train-000003.tar/1.jpg" in page and page.count("data:image/jpeg") >= 2


def test_a_truncated_tar_is_a_finding(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    tar = root / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    report = tmp_path / "check.json"
    arguments = ["data", "check", "imagenet", str(root), f"--output={tmp_path / 'report'}", f"--json={report}"]
    assert main([*arguments, "--workers=1"]) == 1
    assert "train-000001.tar: it is truncated" in report.read_text()


def test_conversion_and_shards_hold_the_same_images(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    assert main(["data", "convert", str(root), str(tmp_path / "csv"), "--to", "csv"]) == 0
    converted = ImageNetDataModule(str(tmp_path / "csv"), **DATA)
    assert [Path(path).read_bytes() for path, _ in converted.samples("train")] == [
        image.read_bytes() for _, image in class_images(folders / "train")
    ]
    assert main(["data", "convert", str(root), str(tmp_path / "links"), "--to", "csv", "--links", "true"]) == 1
    assert main(["data", "optimize", "imagenet", str(root), str(tmp_path / "shards"), "--workers", "1"]) == 0
    data, plain = new_data(tmp_path / "shards"), new_data(folders)
    for batch, other in zip(batches(data), batches(plain), strict=True):
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["label"], other["label"])


def test_a_page_shows_the_images(folders: Path, tmp_path: Path) -> None:
    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    output = tmp_path / "page"
    assert main(["data", "browse", "imagenet", str(root), f"--output={output}", "--number=4"]) == 0
    page = next(output.glob("*.html")).read_text()
    assert "train-000000.tar" in page or "sub.folder" in page
    assert page.count("data:image/") >= 4


def test_memory_reads_the_number_of_classes(folders: Path, tmp_path: Path) -> None:
    from swinv2_tasks.commands.memory.planned_training import read_training

    root = write_webdataset(folders, tmp_path / "tars", LABELS["names"])
    config = write_config(tmp_path / "config.yaml", root, data={"init_args": {"class_names": None}})
    assert read_training([f"--config={config}"]).task.num_classes == 3
