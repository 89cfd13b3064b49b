"""The ImageNet datamodule on folders, class lists, ReaL labels and shards."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from swinv2_tasks.datamodules import ImageNetAugmentation, ImageNetDataModule
from swinv2_tasks.errors import UserError

QUIET = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "num_workers": 0, "batch_size": 4, "image_size": 8}
UNMIXED = ImageNetAugmentation(mixup=0.0, cutmix=0.0)


def write(path: Path, gray: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (gray, gray, gray)).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each of three classes in train, one in val; their gray value is ten times their class."""
    for index, name in enumerate(["cat", "dog", "eel"]):
        for number in range(2):
            write(tmp_path / "data/train" / name / f"{number}.png", 10 * index)
        write(tmp_path / "data/val" / name / f"{name}.png", 10 * index)
    return tmp_path / "data"


def datamodule(root: Path | None, **arguments: object) -> ImageNetDataModule:
    return ImageNetDataModule(str(root) if root else None, **(QUIET | arguments))  # type: ignore[arg-type]


def read_validation(data: ImageNetDataModule) -> dict[str, torch.Tensor]:
    """The validation set as one batch; images become their gray value."""
    data.setup("validate")
    batches = list(data.val_dataloader())
    return {
        "label": torch.cat([batch["label"] for batch in batches]),
        "gray": torch.cat([(batch["image"][:, 0, 0, 0] * 255).round().int() for batch in batches]),
    }


def test_folders(root: Path) -> None:
    data = datamodule(root)
    assert (data.num_classes, data.class_names, data.class_ids) == (3, ["cat", "dog", "eel"], ["cat", "dog", "eel"])
    batch = read_validation(data)
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["gray"].tolist() == [0, 10, 20]
    data.setup("fit")
    assert data.train_samples == 6


def test_class_folders_that_are_links_count_and_links_back_do_not(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (root / "train" / "dog").rename(moved)
    (root / "train" / "dog").symlink_to(moved)
    (moved / "again").symlink_to(".")
    (root / "train" / "cat" / "up").symlink_to(root / "train")
    data = datamodule(root)
    data.setup("fit")
    assert data.train_samples == 6
    assert [label for _, label in data.samples("train")] == [0, 0, 1, 1, 2, 2]


def test_training_batches_are_mixed_and_whole(root: Path) -> None:
    data = datamodule(root)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == data.train_batches() == 1  # 6 images in batches of 4: the incomplete one is dropped
    assert batches[0]["image"].shape == (4, 3, 8, 8)
    assert batches[0]["label"].shape == (4, 3)
    torch.testing.assert_close(batches[0]["label"].sum(1), torch.ones(4))


def test_training_without_mixing_keeps_indices(root: Path) -> None:
    data = datamodule(root, augmentation=UNMIXED, batch_size=6)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2, 2]


def test_order_follows_from_the_seed_alone(root: Path) -> None:
    def order(seed: int, drawn_before: int = 0) -> list[int]:
        data = datamodule(root, augmentation=UNMIXED, batch_size=1)
        data.setup("fit")
        torch.manual_seed(seed)
        torch.rand(drawn_before)
        return [int(batch["label"]) for batch in data.train_dataloader()]

    assert order(3) == order(3, drawn_before=7)
    assert len({tuple(order(seed)) for seed in range(6)}) > 1


def test_batches_per_process(root: Path) -> None:
    data = datamodule(root, batch_size=2)
    data.setup("fit")
    assert [data.train_batches(world_size) for world_size in (1, 2, 3)] == [3, 1, 1]  # of 2, 4 and 6 samples
    with pytest.raises(UserError, match=r"batch_size is 2.*only 6 training samples"):
        data.train_batches(6)


def test_a_batch_larger_than_the_dataset_is_refused(root: Path) -> None:
    data = datamodule(root, batch_size=7)
    data.setup("fit")
    with pytest.raises(UserError, match=r"batch_size is 7.*only 6"):
        data.train_dataloader()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}, {"std": (1.0, 0.0, 1.0)}, {"crop_pct": 0.0}])
def test_arguments_out_of_range(root: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        datamodule(root, **wrong)


def test_workers_yield_the_same_batches(root: Path) -> None:
    for number in range(9):
        write(root / "val/dog" / f"{number}.png", 3 * number)
    alone, helped = read_validation(datamodule(root)), read_validation(datamodule(root, num_workers=2))
    assert alone["gray"].unique().numel() > 8
    for key in alone:
        torch.testing.assert_close(alone[key], helped[key], rtol=0, atol=0)


def test_the_published_augmentation_is_the_same_for_any_number_of_workers(root: Path) -> None:
    """And again when the epoch is begun anew: it follows from the sample's seed."""
    for number in range(9):
        write(root / "train/dog" / f"{number}.png", 20 * number)
    augmentation = ImageNetAugmentation(random_erasing=0.5)
    epochs = []
    for workers in (0, 2, 0):
        torch.manual_seed(3)
        random.seed(workers)
        data = datamodule(root, image_size=32, augmentation=augmentation, num_workers=workers)
        data.setup("fit")
        epochs.append(torch.cat([batch["image"] for batch in data.train_dataloader()]))
    assert torch.equal(epochs[0], epochs[1]) and torch.equal(epochs[0], epochs[2])
    assert epochs[0].std() > 0.1


def test_datasets_can_be_sent_to_spawned_workers(root: Path) -> None:
    data = datamodule(root, augmentation=ImageNetAugmentation())
    data.setup("fit")
    copy = pickle.loads(pickle.dumps((data.train_dataset, data.val_dataset, data.train_collate)))
    torch.testing.assert_close(copy[1][2]["image"], data.val_dataset[2]["image"])  # type: ignore[index]


def test_an_error_in_a_worker_stays_a_user_error(root: Path) -> None:
    (root / "val/dog/broken.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        read_validation(datamodule(root, num_workers=1))


# Class lists


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("list.txt", "eel\ndog\n\ncat\nfox\n", ["eel", "dog", "cat", "fox"]),
        ("list.txt", "eel river eel, fish\ndog\ncat\nfox red fox", ["river eel, fish", "dog", "cat", "red fox"]),
        (
            "list.csv",
            'eel,"river eel, fish"\ndog,\ncat,cat\nfox,red fox\n',
            ["river eel, fish", "dog", "cat", "red fox"],
        ),
        ("list.csv", "\ufeffid,name\neel, river eel\ndog,a\ncat,b\nfox,c\n", ["river eel", "a", "b", "c"]),
        ("list.csv", "eel\ndog\ncat\nfox", ["eel", "dog", "cat", "fox"]),
    ],
)
def test_class_files(root: Path, tmp_path: Path, file: str, text: str, names: list[str]) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    data = datamodule(root, class_names=str(tmp_path / file))
    assert data.class_ids == ["eel", "dog", "cat", "fox"]
    assert data.class_names == names
    assert read_validation(data)["label"].tolist() == [2, 1, 0]


def test_a_list_of_ids_is_a_class_list(root: Path) -> None:
    assert read_validation(datamodule(root, class_names=["eel", "x", "cat", "dog"]))["label"].tolist() == [2, 3, 0]


def test_classes_come_from_val_without_a_train_folder(root: Path) -> None:
    assert datamodule(root, train_dir="none").class_ids == ["cat", "dog", "eel"]


def test_a_val_folder_with_some_of_the_classes(root: Path) -> None:
    (root / "val/cat/cat.png").unlink()
    (root / "val/cat").rmdir()
    assert read_validation(datamodule(root))["label"].tolist() == [1, 2]


def test_class_file_mistakes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(UserError, match=r"list\.txt.*No such file"):
        _ = datamodule(root, class_names=str(path)).num_classes
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"list\.txt.*not UTF-8 text"):
        _ = datamodule(root, class_names=str(path)).num_classes
    path.write_text("\n")
    with pytest.raises(UserError, match=r"list\.txt.*empty"):
        _ = datamodule(root, class_names=str(path)).num_classes
    path.write_text("hot dog\nhot potato\n")
    with pytest.raises(UserError, match=r"list\.txt.*repeats hot\b.*CSV"):
        _ = datamodule(root, class_names=str(path)).num_classes


def nest(root: Path) -> None:
    """What unpacking one level too deep leaves: train/ILSVRC/CLASS/*.png."""
    for split in ("train", "val"):
        (root / split).rename(root / "ILSVRC")
        (root / split).mkdir()
        (root / "ILSVRC").rename(root / split / "ILSVRC")


def test_one_class_folder_is_refused_with_the_folders_below(root: Path) -> None:
    nest(root)
    data = datamodule(root)
    with pytest.raises(UserError, match=r"one class folder, ILSVRC.*cat, dog, eel.*data\.train_dir=train/ILSVRC"):
        data.setup("fit")
    data = datamodule(root, train_dir="train/ILSVRC", val_dir="val/ILSVRC")
    assert data.class_names == ["cat", "dog", "eel"]
    assert read_validation(data)["gray"].tolist() == [0, 10, 20]


def test_one_class_folder_is_refused_with_a_class_list_as_well(root: Path) -> None:
    names = ["cat", "dog", "eel"]
    for folder in ("dog", "eel"):
        shutil.rmtree(root / "train" / folder)
    with pytest.raises(UserError, match=r"All training samples are of one of the 3 classes, cat"):
        datamodule(root, class_names=names).setup("fit")
    nest(root)
    with pytest.raises(UserError, match=r"not in the class list: ILSVRC.*folders cat.*data\.train_dir=train/ILSVRC"):
        datamodule(root, class_names=names).setup("fit")
    with pytest.raises(UserError, match=r"not in the class list: ILSVRC.*folders cat.*data\.val_dir=val/ILSVRC"):
        datamodule(root, class_names=names).setup("validate")


def test_one_class_alone_is_refused(root: Path) -> None:
    for split in ("train", "val"):
        for folder in ("dog", "eel"):
            shutil.rmtree(root / split / folder)
    with pytest.raises(UserError, match="There is one class, cat"):
        datamodule(root, class_names=["cat"]).setup("fit")
    with pytest.raises(UserError, match=r"one class folder, cat.*holds no folders"):
        datamodule(root).setup("fit")


def test_validation_images_may_be_of_one_class(root: Path) -> None:
    for folder in ("dog", "eel"):
        shutil.rmtree(root / "val" / folder)
    assert read_validation(datamodule(root))["label"].tolist() == [0]


def test_folders_taken_as_indices_are_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(["cat", "dog", "eel"]):
        (root / "val" / name).rename(root / "val" / str(index))
    assert read_validation(datamodule(root))["gray"].tolist() == [0, 10, 20]
    output = capsys.readouterr().out
    assert f"{root / 'val'}: labels are numbers and not the classes' ids" in output and "0 is cat" in output


def test_imagenet_v2_folders_are_indices(root: Path) -> None:
    classes = [f"n{index:08d}" for index in range(12)]
    for index in range(12):
        write(root / "v2" / str(index) / "x.png", 10 * index)
    batch = read_validation(datamodule(root, val_dir="v2", class_names=classes))
    assert batch["gray"].tolist() == (10 * batch["label"]).tolist()
    assert sorted(batch["label"].tolist()) == list(range(12))


def test_numbers_that_are_ids_are_ids(root: Path) -> None:
    for name in ["1", "7", "90"]:
        write(root / "numbers" / name / "x.png")
    assert read_validation(datamodule(root, val_dir="numbers", class_names=["90", "7", "1"]))["label"].tolist() == [
        2,
        1,
        0,
    ]
    with pytest.raises(UserError, match=r"not in the class list: 7, 90\b"):
        read_validation(datamodule(root, val_dir="numbers", class_names=["1", "2", "3"]))


def test_folders_of_numbers_sort_as_numbers(root: Path) -> None:
    for index in range(12):
        write(root / "v2" / str(index) / "x.png", 10 * index)
    data = datamodule(root, val_dir="v2", train_dir="none")
    assert data.class_ids == [str(index) for index in range(12)]
    batch = read_validation(data)
    assert batch["gray"].tolist() == (10 * batch["label"]).tolist()


# Validation lists and ReaL labels


@pytest.fixture
def flat(root: Path) -> Path:
    """Four images directly in `flat`; their gray value is their number."""
    for number in range(1, 5):
        write(root / "flat" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return root


def listing(flat: Path, text: str, **arguments: object) -> ImageNetDataModule:
    (flat / "list.txt").write_text(text)
    return datamodule(flat, val_dir="flat", val_list=str(flat / "list.txt"), **arguments)


@pytest.mark.parametrize("labels", [("2", "0"), ("eel", "cat")])
def test_val_list(flat: Path, labels: tuple[str, str]) -> None:
    write(flat / "flat/deep er/x y.png", 99)
    first, second = labels
    text = f"ILSVRC2012_val_00000003.JPEG {first}\n\ndeep er/x y.png\t{second}\n"
    batch = read_validation(listing(flat, text))
    assert batch["label"].tolist() == [2, 0]
    assert batch["gray"].tolist() == [3, 99]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ILSVRC2012_val_00000001.JPEG", r"list\.txt, line 2.*has no label"),
        ("ILSVRC2012_val_00000001.JPEG 3", r"list\.txt, line 2.*'3' is no class"),
        ("ILSVRC2012_val_00000001.JPEG -1", r"list\.txt, line 2.*'-1' is no class"),
        ("ILSVRC2012_val_00000009.JPEG 1", r"list\.txt, line 2.*no file .*00000009"),
        ("../../outside.JPEG 1", r"list\.txt, line 2.*outside\.JPEG leaves the dataset's folder"),
        ("/etc/outside.JPEG 1", r"list\.txt, line 2.*outside\.JPEG leaves the dataset's folder"),
    ],
)
def test_val_list_mistakes(flat: Path, line: str, message: str) -> None:
    good = "cat" if "class" in message else "0"
    with pytest.raises(UserError, match=message):
        read_validation(listing(flat, f"ILSVRC2012_val_00000002.JPEG {good}\n{line}\n"))


def test_val_list_missing_or_empty(flat: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt"):
        read_validation(datamodule(flat, val_dir="flat", val_list=str(flat / "gone.txt")))
    with pytest.raises(UserError, match=r"list\.txt is empty"):
        read_validation(listing(flat, ""))


def test_a_flat_folder_without_a_list(flat: Path) -> None:
    with pytest.raises(UserError, match=r"flat holds no class folders.*val_list"):
        read_validation(datamodule(flat, val_dir="flat"))


ALL_FOUR = "".join(f"ILSVRC2012_val_{number:08d}.JPEG 0\n" for number in (4, 3, 2, 1))


def real(flat: Path, content: object, text: str = ALL_FOUR) -> ImageNetDataModule:
    (flat / "real.json").write_text(json.dumps(content))
    return listing(flat, text, real_labels=str(flat / "real.json"))


def test_real_labels_in_order_of_the_numbers(flat: Path) -> None:
    batch = read_validation(real(flat, [[0], [1, 2], [], [2]]))
    assert batch["gray"].tolist() == [4, 3, 2, 1]
    assert batch["label"].dtype == torch.float32
    assert batch["label"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]]


def test_real_labels_by_file_name(root: Path) -> None:
    (root / "real.json").write_text(json.dumps({"eel.png": [], "cat.png": [0, 2], "dog.png": [1]}))
    batch = read_validation(datamodule(root, real_labels=str(root / "real.json")))
    assert batch["label"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[0], [1], [2]], r"real\.json has 3 entries, but none for ILSVRC2012_val_00000004"),
        ({"ILSVRC2012_val_00000001.JPEG": [0]}, r"none for ILSVRC2012_val_00000004"),
        ([[0], [3], [1], [2]], r"entry 1: expected a list of class indices below 3, found \[3\]"),
        ([[0], 1, [1], [2]], r"entry 1: .*found 1"),
        ([["a"], [], [], []], r"entry 0: .*found \['a'\]"),
        ("text", r"expected a JSON list"),
    ],
)
def test_real_label_mistakes(flat: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_validation(real(flat, content))


def test_real_labels_that_are_no_json(root: Path) -> None:
    (root / "real.json").write_text("[[1], ")
    with pytest.raises(UserError, match=r"real\.json.*not JSON"):
        read_validation(datamodule(root, real_labels=str(root / "real.json")))


def test_real_labels_in_order_need_numbered_images(root: Path) -> None:
    (root / "real.json").write_text("[[0], [1], [2]]")
    with pytest.raises(UserError, match=r"named cat\.png"):
        read_validation(datamodule(root, real_labels=str(root / "real.json")))


def test_real_labels_by_name_need_distinct_names(root: Path) -> None:
    write(root / "val/dog/cat.png")
    (root / "real.json").write_text(json.dumps({"eel.png": [0], "cat.png": [0], "dog.png": [1]}))
    with pytest.raises(UserError, match=r"several validation images share one"):
        read_validation(datamodule(root, real_labels=str(root / "real.json")))


# Predicting


def test_predict_needs_only_a_source(root: Path) -> None:
    data = datamodule(None, source=str(root / "val"))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["path"] == [str(root / "val" / name / f"{name}.png") for name in ("cat", "dog", "eel")]
    assert batch["image"].shape == (3, 3, 8, 8)
    with pytest.raises(UserError, match=r"data\.root"):
        _ = data.num_classes


def test_predict_without_a_source(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source"):
        datamodule(root).setup("predict")


# Missing and malformed folders


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_missing_folders(root: Path, tmp_path: Path, stage: str) -> None:
    with pytest.raises(UserError, match=r"set data\.root"):
        datamodule(None).setup(stage)
    with pytest.raises(UserError, match=r"nowhere/? does not exist.*train/CLASS.*data\.val_list"):
        datamodule(tmp_path / "nowhere").setup(stage)
    with pytest.raises(UserError, match=r"no validation data .*data/validation.*data\.val_dir"):
        datamodule(root, val_dir="validation").setup(stage)


def test_missing_training_folder(root: Path) -> None:
    with pytest.raises(UserError, match=r"data/training does not exist.*data\.train_dir"):
        datamodule(root, train_dir="training").setup("fit")


def test_folder_that_is_no_class(root: Path) -> None:
    write(root / "val/owl/x.png")
    with pytest.raises(UserError, match=r"val has folders.*: owl\. The class list is cat, dog, eel\."):
        read_validation(datamodule(root))


def test_folders_of_another_dataset_are_abbreviated(root: Path) -> None:
    with pytest.raises(UserError, match=r"cat, dog, eel\. The class list is n0, n1, n2, n3, n4, n5, … \(1000 in all\)"):
        read_validation(datamodule(root, class_names=[f"n{index}" for index in range(1000)]))


@pytest.mark.parametrize("folder", ["train", "val"])
def test_empty_class_folder(root: Path, folder: str) -> None:
    for image in (root / folder / "dog").iterdir():
        image.unlink()
    (root / folder / "dog/readme.txt").write_text("no image")
    (root / folder / "dog/.hidden.png").write_text("no image")
    with pytest.raises(UserError, match=rf"{folder}: dog, but 1 file that is no image"):
        datamodule(root).setup("fit")


def test_empty_class_folders_pass_with_a_class_list(root: Path) -> None:
    (root / "val/cat/cat.png").unlink()
    assert read_validation(datamodule(root, class_names=["cat", "dog", "eel"]))["label"].tolist() == [1, 2]
    (root / "val/dog/dog.png").unlink()
    (root / "val/eel/eel.png").unlink()
    with pytest.raises(UserError, match=r"val: cat, dog, eel\."):
        read_validation(datamodule(root, class_names=["cat", "dog", "eel"]))


def test_hidden_folders_are_no_classes(root: Path) -> None:
    (root / "train/.ipynb_checkpoints").mkdir()
    assert datamodule(root).num_classes == 3


# Real data


def test_imagenet40(real_data: Path) -> None:
    synsets = real_data / "labels" / "imagenet_synsets.txt"
    arguments = {"val_dir": "imagenet40", "class_names": str(synsets), "batch_size": 40, "image_size": 64}
    data = datamodule(real_data, **arguments)
    assert data.num_classes == 1000
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (40, 3, 64, 64)
    ids = synsets.read_text().split()
    folders = sorted(folder.name for folder in (real_data / "imagenet40").iterdir())
    assert [ids[label] for label in batch["label"]] == folders
