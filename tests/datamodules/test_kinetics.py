"""Videos from CSV files, lists and class folders to batches."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_tasks.datamodules import KineticsAugmentation, KineticsDataModule
from swinv2_tasks.datamodules.kinetics import VideoFiles, ViewCounts
from swinv2_tasks.datamodules.readers.video_lists import VideoLists, read_label_map
from swinv2_tasks.datamodules.transforms.video import FrameSampling
from swinv2_tasks.errors import UserError
from tests.helpers.broken_files import cut_off
from tests.helpers.films import GRAY_STEP, write_film

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

SETTINGS: dict[str, Any] = {
    "image_size": 32, "batch_size": 2, "num_workers": 0, "sampling": FrameSampling(4, 2), "mean": MEAN, "std": STD,
}  # fmt: skip


def data(root: Path, **changes: Any) -> KineticsDataModule:
    return KineticsDataModule(str(root), **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of films, three for training and two for validation; not to be changed."""
    root = tmp_path_factory.mktemp("films")
    for split, number in (("train", 3), ("val", 2)):
        for label in ("air drumming", "zumba"):
            for k in range(number):
                write_film(root / split / label / f"{label[0]}_{k}.mp4", frames=14 + k)
    return root


def test_class_folders(folders: Path) -> None:
    module = data(folders)
    module.setup("fit")
    assert module.class_names == module.class_ids == ["air drumming", "zumba"]
    (first, *others) = module.train_dataloader()
    assert len(others) == 2
    assert first["clip"].shape == (2, 1, 3, 4, 32, 32) and first["clip"].dtype == torch.float32
    assert first["label"].dtype == first["video_id"].dtype == torch.int64
    for path, label in zip(first["path"], first["label"], strict=True):
        assert Path(path).parent.name == module.class_names[label]


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "train" / "videos" / "zumba" / "z.mp4", frames=5)
    write_film(tmp_path / "train" / "videos" / "air drumming" / "a.mp4", frames=5)
    with pytest.raises(
        UserError, match=r"one class folder, videos.*folders air drumming, zumba.*data\.files\.train_videos=train/vi"
    ):
        data(tmp_path).setup("fit")
    (tmp_path / "names.txt").write_text("zumba\nair drumming\n")
    names = {"class_names": str(tmp_path / "names.txt")}
    with pytest.raises(UserError, match=r"no class: videos.*data\.files\.train_videos=train/videos"):
        data(tmp_path, **names).setup("fit")
    (tmp_path / "train.txt").write_text("train/videos/zumba/z.mp4 zumba\n")
    with pytest.raises(UserError, match="There is one class, zumba"):
        data(tmp_path).setup("fit")
    with pytest.raises(UserError, match="All training samples are of one of the 2 classes, zumba"):
        data(tmp_path, **names).setup("fit")


def test_validation_takes_the_middle_and_testing_all_views(folders: Path) -> None:
    module = data(folders, views=ViewCounts(test=(2, 3)))
    module.setup("validate")
    batches = list(module.val_dataloader())
    assert [batch["video_id"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert batches[0]["clip"].shape == (2, 1, 3, 4, 32, 32)
    gray = batches[0]["clip"][0, 0, 0, :, 16, 16] * STD[0] + MEAN[0]  # of frames 3, 5, 7, 9 of 14
    assert (gray * 255).tolist() == pytest.approx([20 + GRAY_STEP * n for n in (3, 5, 7, 9)], abs=3)
    module.setup("test")
    views = [batch["clip"].shape for batch in module.test_dataloader()]
    assert views == [(1, 3, 3, 4, 32, 32)] * 8  # a clip's crops at a time, never more views than training has clips


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_views_are_the_same_however_they_are_split(number: int, folders: Path) -> None:
    def views(per_sample: int) -> dict[int, torch.Tensor]:
        module = data(folders, views=ViewCounts(test=(2, 3), per_sample=per_sample))
        module.setup("test")
        views: dict[int, list[torch.Tensor]] = {}
        for batch in module.test_dataloader():
            for video, clip in zip(batch["video_id"].tolist(), batch["clip"], strict=True):
                views.setdefault(video, []).extend(clip)
        return {video: torch.stack(clips) for video, clips in views.items()}

    split, whole = views(number), views(6)
    assert set(split) == {0, 1, 2, 3}
    assert all(torch.equal(split[video], whole[video]) for video in whole)


def test_augmentation_is_the_same_for_all_frames_of_a_clip(tmp_path: Path) -> None:
    """Films of one frame, repeated: what augmentation does to it must not differ over time."""
    for k in range(2):
        write_film(tmp_path / "train" / f"still {k}" / f"{k}.mp4", frames=1)
        write_film(tmp_path / "val" / f"still {k}" / f"{k}.mp4", frames=1)
    module = data(tmp_path, augmentation=KineticsAugmentation(rand_augment_ops=2, crop_scale=(0.3, 1.0)))
    module.setup("fit")
    batches = []
    for epoch in range(6):
        loader = module.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            clips = batch["clip"]
            assert (clips == clips[:, :, :, :1]).all()
            batches.append(clips)
    assert len(torch.unique(torch.cat(batches), dim=0)) > 6


def test_prediction_needs_no_classes(folders: Path) -> None:
    module = KineticsDataModule(**SETTINGS, source=str(folders / "val"), views=ViewCounts(test=(1, 1)))
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert sum(len(batch["path"]) for batch in batches) == 4 and "label" not in batches[0]


def write_kinetics(root: Path, rows: list[str]) -> Path:
    (root / "train.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    return root / "train.csv"


def test_kinetics_csv(tmp_path: Path) -> None:
    rows = [
        '"zumba, slow",abcdefghijk,10,20,train',
        "abseiling,-_cdefghijk,0,10,train",
        "abseiling,gone4567890,3,13,train",
    ]
    path = write_kinetics(tmp_path, rows)
    for name in ("zumba/abcdefghijk_000010_000020.mkv", "-_cdefghijk.mp4"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    module = data(tmp_path)
    assert module.class_names == ["abseiling", "zumba, slow"]
    folder = tmp_path / "train"
    assert module.videos("train") == [
        (str(folder / "zumba/abcdefghijk_000010_000020.mkv"), 1),
        (str(folder / "-_cdefghijk.mp4"), 0),
        (str(folder / "gone4567890_000003_000013.mp4"), 0),
    ]
    assert VideoLists([path]).labels(path) == ["abseiling", "zumba, slow"]
    with pytest.raises(UserError, match=r"1 of 3 train videos are not there: .*gone4567890.*data check kinetics"):
        module.setup("fit")


def test_kinetics_csv_finds_videos_behind_links_once(tmp_path: Path) -> None:
    write_kinetics(tmp_path, ["zumba,abcdefghijk,10,20,train", "abseiling,lbcdefghijk,0,10,train"])
    elsewhere = tmp_path / "elsewhere"
    for name in ("zumba/abcdefghijk_000010_000020.mp4", "inner/lbcdefghijk_000000_000010.mp4"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).touch()
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "zumba").symlink_to(elsewhere / "zumba")
    (folder / "abseiling").symlink_to(elsewhere / "inner", target_is_directory=True)
    (elsewhere / "inner" / "again").symlink_to(elsewhere / "inner")  # must not loop
    (folder / "myself").symlink_to(folder)
    videos = data(tmp_path).videos("train")
    assert [path for path, _ in videos] == [
        str(folder / "zumba/abcdefghijk_000010_000020.mp4"),
        str(folder / "abseiling/lbcdefghijk_000000_000010.mp4"),
    ]


def test_the_published_sizes_before_the_crop(folders: Path) -> None:
    """At 0.875 validation shows the middle 7/8 of the short side, testing all of it; films have a white corner."""
    shares = {}
    for crop_pct in (None, 0.875, 0.4):
        module = data(folders, crop_pct=crop_pct)
        module.setup("fit")
        shares[crop_pct] = float((next(iter(module.val_dataloader()))["clip"] > 1.5).float().mean())
        assert next(iter(module.train_dataloader()))["clip"].shape[-2:] == (32, 32)
    assert shares[None] > shares[0.875] > shares[0.4]
    with pytest.raises(UserError, match="crop_pct"):
        data(folders, crop_pct=0.0)


@pytest.mark.parametrize("mark", ["\t", ",", " ", " , "])
def test_lists_of_paths_and_labels(mark: str, tmp_path: Path) -> None:
    (tmp_path / "my films").mkdir()
    (tmp_path / "my films" / "a 1.mp4").touch()
    path = tmp_path / "train.txt"
    path.write_text(f"my films/a 1.mp4{mark}10\n\nb.avi{mark}2\n")
    assert VideoLists([path]).labels(path) == ["2", "10"]
    classes = read_label_map(["2", "10"])
    assert VideoLists([path]).videos(path, [tmp_path / "train", tmp_path], classes) == [
        (str(tmp_path / "my films/a 1.mp4"), 1),
        (str(tmp_path / "train/b.avi"), 0),
    ]
    path.write_text(f"a 1.mp4{mark}1\nb.avi{mark}0\n")  # indices
    names = read_label_map(["air drumming", "zumba"])
    assert VideoLists([path]).videos(path, [tmp_path / "my films"], names)[0] == (str(tmp_path / "my films/a 1.mp4"), 1)
    if mark.strip() or mark == "\t":
        path.write_text(f"a 1.mp4{mark}air drumming\n")
        assert VideoLists([path]).videos(path, [tmp_path], names)[0][1] == 0


def test_label_maps(tmp_path: Path, real_data: Path) -> None:
    assert len(read_label_map(real_data / "labels" / "label_map_k400.txt").ids) == 400
    (tmp_path / "a.json").write_text(json.dumps({'"zumba"': 1, "air drumming": 0}))
    assert read_label_map(tmp_path / "a.json").names == ["air drumming", "zumba"]
    for content, words in (
        ("{}", "empty"),
        ('{"a": 3}', "labels and indices"),
        ("[1]", "list of labels"),
        ("[", "JSON"),
    ):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(UserError, match=words):
            read_label_map(tmp_path / "b.json")
    (tmp_path / "c.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match=r"c\.txt.*repeats a"):
        read_label_map(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.mp4 1\nb.mp4\n", "line 2: 'b.mp4' has no label"),
        ("some film.mp4\n", "line 1: 'some film.mp4' has no label"),
        ("", "names no video"),
        ("a.mp4 zumbaa\n", "labels that are no class: zumbaa"),
        ("label,youtube_id\nzumba,\n", "line 2: a label or an id is missing"),
        ("label,youtube_id,time_start,time_end\nzumba,a,one,2\n", "line 2: the times"),
        ("../../outside.mp4 zumba\n", r"outside of the dataset's folder: \.\./\.\./outside\.mp4"),
        ("/etc/outside.mp4 zumba\n", "outside of the dataset's folder: /etc/outside.mp4"),
        ("label,youtube_id\nzumba,../../outside\n", "outside of the dataset's folder"),
    ],
)
def test_lists_that_are_not_in_order(content: str, words: str, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(UserError, match=words):
        data(tmp_path, class_names=["air drumming", "zumba"]).setup("fit")


def test_settings_that_do_not_fit(folders: Path, tmp_path: Path) -> None:
    for build, words in (
        (lambda: ViewCounts(per_sample=5), "does not divide the 4 × 3"),
        (lambda: ViewCounts(per_sample=0), r"data\.views\.per_sample"),
        (lambda: ViewCounts(val=(0, 1)), r"data\.views\.val"),
        (lambda: FrameSampling(frames=0), r"data\.sampling\.frames"),
        (lambda: FrameSampling(mode="sparse"), r"data\.sampling\.mode is 'sparse'; expected dense or segments"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=words):
            build()
    with pytest.raises(UserError, match="folders that are no class: zumba"):
        data(folders, class_names=["air drumming"]).setup("fit")
    with pytest.raises(UserError, match=r"train/ and val/"):
        data(tmp_path).setup("fit")
    with pytest.raises(UserError, match="val_list"):
        data(folders, files=VideoFiles(val_list="nowhere.csv")).setup("validate")


def test_faulty_videos_stop_or_are_skipped_by_name(folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "films"
    for k in range(3):
        write_film(root / "train" / "a" / f"{k}.mp4")
        write_film(root / "val" / "a" / f"{k}.mp4")
    cut_off(root / "val" / "a" / "1.mp4")
    module = data(root)
    module.setup("validate")
    with pytest.raises(UserError, match=r"val/a/1\.mp4.*faulty_samples=skip"):
        list(module.val_dataloader())
    module = data(root, faulty_samples="skip", views=ViewCounts(val=(2, 1)))
    module.setup("validate")
    videos = [video for batch in module.val_dataloader() for video in batch["video_id"].tolist()]
    assert videos == [0, 0, 2, 2]
    assert list(module.faults.skipped) == [str(root / "val" / "a" / "1.mp4")]


def test_a_crash_in_decoding_names_the_file(folders: Path) -> None:
    module = data(folders, num_workers=1)
    module.setup("fit")
    module.train_dataset.transform = Crash()
    with pytest.raises(UserError, match=r"a DataLoader worker died while it read .*_\d\.mp4"):
        list(module.train_dataloader())


class Crash:
    """Ends the process as a decoder that reads where it must not."""

    def __call__(self, clip: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)
        return clip


def test_workers_and_their_number_change_nothing(folders: Path) -> None:
    clips = []
    for workers in (0, 2):
        module = data(folders, num_workers=workers, sampling=FrameSampling(4, 2, "segments"))
        torch.manual_seed(3)
        module.setup("fit")
        clips.append(torch.cat([batch["clip"] for batch in module.train_dataloader()]))
    assert torch.equal(*clips)
    assert np.isfinite(clips[0].numpy()).all()
