"""Datasets as the library `datasets` and the hub have them: the same samples as class folders give; what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.datasets.classification import LabeledImages
from swinv2_tasks.datamodules.readers import huggingface
from swinv2_tasks.errors import UserError
from tests.helpers import runs
from tests.helpers.archives import batches, class_images
from tests.helpers.hub_datasets import CLASSES, FORMS, Form, both_splits, new_dataset, write
from tests.helpers.runs import last_checkpoint
from tests.helpers.tiny import new_data, write_config, write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("images") / "images")
    (root / "classes.csv").unlink()
    return root


@pytest.mark.parametrize("form", FORMS)
def test_the_batches_are_those_of_class_folders(folders: Path, tmp_path: Path, form: Form, capsys: Any) -> None:
    root = write(form, both_splits(folders), tmp_path / form)
    data, plain = new_data(root), new_data(folders)
    ours, theirs = batches(data), batches(plain)
    output = capsys.readouterr().out
    evidence = "dataset_dict.json" if form == "saved" else "data/train-00000-of-00002.parquet"
    assert f"data.root is read as huggingface: {evidence}" in output
    assert "labels are those of the column label (n01, n02, n03)" in output
    assert data.class_names == CLASSES and data.multi_label is False
    assert len(ours) == len(theirs) == 8
    for batch, other in zip(ours, theirs, strict=True):
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["label"], other["label"])


@pytest.mark.parametrize("form", FORMS)
def test_workers_read_the_same_and_datasets_are_picklable(folders: Path, tmp_path: Path, form: Form) -> None:
    root = write(form, both_splits(folders), tmp_path / form)
    alone, together = new_data(root), new_data(root, num_workers=2)
    for data in (alone, together):
        data.setup("fit")
    dataset = alone.train_dataset
    assert isinstance(dataset, LabeledImages)
    dataset[0]  # so that a file is open when workers are forked
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copied[5]["image"], dataset[5]["image"]) or copied.transform is not None
    assert copied.samples[5][0].read() == class_images(folders / "train")[5][1].read_bytes()
    assert str(dataset.samples[0][0]).endswith("/0/n01_0.jpg")
    for batch, other in zip(alone.val_dataloader(), together.val_dataloader(), strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_few_row_groups_are_kept(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write("parquet", both_splits(folders), tmp_path)
    monkeypatch.setattr(huggingface._RowGroups, "MOST_BYTES", 1)
    monkeypatch.setattr(huggingface._RowGroups, "MOST_FILES", 1)
    data = new_data(root)
    samples = data.samples("train")
    for index in (0, 17, 3, 9, 0):
        assert samples[index][0].read() == class_images(folders / "train")[index][1].read_bytes()  # type: ignore[attr-defined]
    assert len(huggingface._GROUPS._columns) == len(huggingface._GROUPS._files) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("label", "feature", "ids"),
    [
        (lambda name: name, datasets.Value("string"), CLASSES),
        (lambda name: 7 * CLASSES.index(name), datasets.Value("int32"), ["0", "7", "14"]),
    ],
)
def test_texts_and_numbers_are_labels(
    folders: Path, tmp_path: Path, form: Form, label: Any, feature: Any, ids: list[str]
) -> None:
    data = new_data(write(form, both_splits(folders, label=label, feature=feature), tmp_path / form))
    assert data.class_ids == ids
    assert [index for _, index in data.samples("val")] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_labels_are_several(folders: Path, tmp_path: Path, form: Form) -> None:
    tags = {"n01": [0, 2], "n02": [], "n03": [1]}
    feature = datasets.List(datasets.ClassLabel(names=["cat", "polar bear, white", "dog"]))
    splits = both_splits(folders, label=tags.get, feature=feature, name="labels")
    data = new_data(write(form, splits, tmp_path / form))
    assert data.multi_label is True
    assert data.class_names == ["cat", "polar bear, white", "dog"]
    data.setup("fit")
    rows = [sample["label"].tolist() for sample in data.val_dataset]  # type: ignore[union-attr]
    assert rows == [[1, 0, 1]] * 4 + [[0, 0, 0]] * 4 + [[0, 1, 0]] * 4


def test_names_with_commas_are_one_label(folders: Path, tmp_path: Path) -> None:
    feature = datasets.ClassLabel(names=["tench, Tinca tinca", "goldfish, Carassius auratus", "a, b"])
    data = new_data(write("saved", both_splits(folders, feature=feature), tmp_path / "saved"))
    assert data.multi_label is False and data.class_names[0] == "tench, Tinca tinca"
    several = new_data(tmp_path / "saved", labels="several")
    assert several.samples("train")[0][1] == [0]


def test_a_single_dataset_has_a_share_set_aside(folders: Path, tmp_path: Path, capsys: Any) -> None:
    new_dataset(folders / "train").save_to_disk(str(tmp_path / "saved"))
    data = new_data(tmp_path / "saved")
    assert [len(data.samples(split)) for split in ("train", "val")] == [15, 3]  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "read as huggingface: state.json, dataset_info.json" in output and "3 of 18 training images" in output


def test_test_splits_without_labels_and_other_splits_are_left_out(folders: Path, tmp_path: Path, capsys: Any) -> None:
    splits = both_splits(folders)
    splits["test"] = new_dataset(folders / "val", label=lambda name: -1)
    splits["unlabeled"] = splits["test"]
    for form in FORMS:
        data = new_data(write(form, splits, tmp_path / form))
        assert not data.has("test") and data.has("val")
        output = capsys.readouterr().out
        assert "no labels and is left out" in output and "splits of other names" in output
    training = {"train": splits["test"]}
    with pytest.raises(UserError, match="all are -1"):
        new_data(write("saved", training, tmp_path / "none")).samples("train")


def test_classes_are_described_by_the_card_or_its_json(folders: Path, tmp_path: Path) -> None:
    """Parquet files that other tools wrote say nothing of classes."""
    root = write("parquet", both_splits(folders), tmp_path)
    for path in (root / "data").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({}), path)
    assert new_data(root).class_ids == ["0", "1", "2"]
    card = "\n".join(
        ["---", "license: mit", "dataset_info:", "  features:", "  - name: image", "    dtype: image"]
        + ["  - name: label", "    dtype:", "      class_label:", "        names:"]
        + [f"          '{number}': {name}" for number, name in enumerate(CLASSES)]
        + ["---", "# A card"]
    )
    (root / "README.md").write_text(card)
    assert new_data(root).class_ids == CLASSES
    (root / "README.md").write_text("---\n[\n---\n")
    assert new_data(root).class_ids == ["0", "1", "2"]
    features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    (root / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert new_data(root).class_ids == ["a", "b", "c"]


def test_the_column_of_labels_is_stated(folders: Path, tmp_path: Path) -> None:
    splits = both_splits(folders, name="fine_kind")
    for split, dataset in splits.items():
        splits[split] = dataset.add_column("coarse_kind", [k % 2 for k in range(len(dataset))])
    root = write("saved", splits, tmp_path / "one")
    assert new_data(root).class_ids == CLASSES  # the one that has named classes
    data = new_data(root, label_column="coarse_kind")
    assert [label for _, label in data.samples("val")] == [0, 1] * 6
    with pytest.raises(UserError, match=r"columns image, fine_kind, coarse_kind: which .* --data\.label_column"):
        new_data(root, label_column="hue").samples("train")
    several = {name: dataset.cast_column("coarse_kind", datasets.ClassLabel(names=["x", "y"]))
               for name, dataset in splits.items()}  # fmt: skip
    with pytest.raises(UserError, match="which of them has the labels"):
        new_data(write("saved", several, tmp_path / "two")).samples("train")


# ---- what is refused


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_reported(folders: Path, tmp_path: Path, form: Form, share: float) -> None:
    root = write(form, both_splits(folders), tmp_path / form)
    file = sorted(root.glob("train/*.arrow" if form == "saved" else "data/train*.parquet"))[1]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    try:
        samples = new_data(root).samples("train")
    except UserError as error:
        assert file.name in str(error)
    else:  # a stream of Arrow may lack its last mark alone
        assert form == "saved" and share == 0.999 and len(samples) == 18


@pytest.mark.parametrize("form", FORMS)
def test_corrupt_files_are_read_or_refused(folders: Path, tmp_path: Path, form: Form) -> None:
    """Bytes changed here and there: a message, or an image that is refused, and never another error."""
    root = write(form, {"train": new_dataset(folders / "val")}, tmp_path / form, shards=1)
    (file,) = root.glob("train/*.arrow" if form == "saved" else "data/*.parquet")
    content = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        altered = bytearray(content)
        near_end = int(torch.randint(2, (), generator=generator))
        for _ in range(3):
            span = min(3000, len(content))
            position = int(torch.randint(span, (), generator=generator))
            altered[-1 - position if near_end else position] = int(torch.randint(256, (), generator=generator))
        file.write_bytes(altered)
        huggingface._GROUPS._forget()
        try:
            data = new_data(root, val_share=0.2)
            for path, _ in data.source_on_disk.samples("train", data._classes):
                data.reader.image(path)
        except UserError:
            pass


def test_files_that_name_others_or_hold_no_images_are_refused(folders: Path, tmp_path: Path) -> None:
    root = write("saved", both_splits(folders), tmp_path / "saved")
    state = root / "train" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"] = [{"filename": "../../elsewhere.arrow"}]
    state.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"state\.json names no Arrow files"):
        new_data(root).samples("train")

    (tmp_path / "paths").mkdir()
    table = pa.table({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]},
                     schema=pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                                       ("label", pa.int64())]))  # fmt: skip
    pq.write_table(table, tmp_path / "paths" / "train.parquet")
    data = new_data(tmp_path / "paths", class_names=["0", "1"], val_share=0.5)
    with pytest.raises(UserError, match=r"train\.parquet/0/passwd: the row has no bytes"):
        data.reader.image(data.source_on_disk.samples("train", data._classes)[0][0])

    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text" / "train.parquet")
    with pytest.raises(UserError, match=r"columns text, label, of which none may hold images"):
        new_data(tmp_path / "text").samples("train")


def test_compressed_arrow_files_and_huge_row_groups_are_refused(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write("saved", {"train": new_dataset(folders / "train")}, tmp_path / "saved", shards=1)
    (file,) = root.glob("train/*.arrow")
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(file) + ".new", "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as to:
            to.write_table(table)
    Path(str(file) + ".new").replace(file)
    with pytest.raises(UserError, match="is compressed"):
        new_data(root, val_share=0.5).samples("train")

    root = write("parquet", both_splits(folders), tmp_path / "parquet")
    monkeypatch.setattr(huggingface, "MOST_GROUP_BYTES", 1000)
    with pytest.raises(UserError, match=r"row groups of .* bytes"):
        new_data(root).samples("train")


def test_without_pyarrow_the_command_to_install_it_is_named(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write("parquet", both_splits(folders), tmp_path)
    for name in ("pyarrow", "pyarrow.parquet", "pyarrow.types", "pyarrow.ipc"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match=r"need pyarrow .*pip install 'swinv2-tasks\[datasets\]'"):
        new_data(root).samples("train")


def test_folders_beside_it_are_ambiguous(folders: Path, tmp_path: Path) -> None:
    root = write("parquet", both_splits(folders), tmp_path)
    (root / "train-0.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"as huggingface \(data/train-00000.* or as webdataset \(train-0\.tar\)"):
        new_data(root).samples("train")


# ---- the command line


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_run_resumes_bitwise_with_workers(folders: Path, tmp_path: Path, form: Form) -> None:
    root = write(form, both_splits(folders), tmp_path / form)
    changes = {"init_args": {"num_workers": 1, "class_names": None}}
    config = write_config(tmp_path / "config.yaml", root, trainer={"max_epochs": 2}, data=changes)
    whole = runs.fit(config, tmp_path / "whole")
    part = runs.fit(config, tmp_path / "part", "--trainer.max_steps=4")
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    states = [torch.load(last_checkpoint(run), weights_only=True)["state_dict"] for run in (whole, part)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    record = torch.load(last_checkpoint(whole), weights_only=True)["swinv2_tasks"]
    assert record["classes"]["names"] == CLASSES


@pytest.mark.parametrize("form", FORMS)
def test_the_check_names_rows(folders: Path, tmp_path: Path, form: Form) -> None:
    images = [image.read_bytes() for _, image in class_images(folders / "train")]
    images[1], images[2], images[3] = images[0], images[2][: len(images[2]) // 2], b"no image"
    rows = {"image": [{"bytes": content, "path": None} for content in images], "label": [k // 6 for k in range(18)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    splits = {"train": datasets.Dataset.from_dict(rows, features), "validation": new_dataset(folders / "val")}
    root = write(form, splits, tmp_path / form, shards=1)
    report = tmp_path / "check.json"
    arguments = ["data", "check", "imagenet", str(root), f"--output={tmp_path / 'report'}", f"--json={report}"]
    assert main([*arguments, "--workers=1"]) == 1
    (file,) = root.glob("train/*.arrow" if form == "saved" else "data/train*.parquet")
    checks = {check["check"]: check for check in json.loads(report.read_text())["checks"]}
    for check, row in (("duplicate_in_split", 1), ("truncated_file", 2), ("unreadable_file", 3)):
        assert [finding["file"] for finding in checks[check]["findings"]] == [f"{file}/{row}"]
