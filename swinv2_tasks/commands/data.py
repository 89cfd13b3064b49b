"""``swinv2-tasks data``: looks after datasets."""

from __future__ import annotations

import concurrent.futures
import csv
import multiprocessing
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress, track

from swinv2_tasks.backbone.checkpoint_files import replace_file
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule
from swinv2_tasks.datamodules.kinetics import KineticsDataModule
from swinv2_tasks.datamodules.shard_writer import StoredImage, write_shards
from swinv2_tasks.datamodules.videos import find_damage
from swinv2_tasks.errors import UserError
from swinv2_tasks.runs import lock

SPLITS = ("train", "val", "test")


def check(
    dataset: Literal["kinetics"],
    root: str,
    output: str | None = None,
    workers: int | None = None,
    seconds: float = 120.0,
    class_names: str | None = None,
    train_videos: str = "train",
    train_list: str | None = None,
    val_videos: str = "val",
    val_list: str | None = None,
    test_videos: str | None = None,
    test_list: str | None = None,
) -> dict[str, str]:
    """Decodes every frame of every video, lists those that fail and why, and writes lists of the others.

    SPLIT_clean.txt holds the videos of a split that decode fully, for data.SPLIT_list; faulty_videos.csv the others. A
    video whose decoder crashes or hangs is one of these, and the others go on.

    Args:
        dataset: kind of dataset; the other settings are those of its datamodule.
        root: dataset folder.
        output: folder to write to; default: root.
        workers: processes that decode; default: one per core.
        seconds: time after which the decoding of a video counts as hung.
        class_names: label map.
        train_videos: folder of training videos.
        train_list: list of training videos.
        val_videos: folder of validation videos.
        val_list: list of validation videos.
        test_videos: folder of test videos.
        test_list: list of test videos.

    Returns:
        The reason for each faulty video, by its path.

    Raises:
        UserError: there are no videos, a list is not in order, or an argument is out of its range.
    """
    if (workers is not None and workers < 1) or seconds <= 0:
        raise UserError(f"workers is {workers}, seconds {seconds:g}; expected at least 1 and above 0")
    data = KineticsDataModule(
        root,
        train_videos=train_videos,
        train_list=train_list,
        val_videos=val_videos,
        val_list=val_list,
        test_videos=test_videos,
        test_list=test_list,
        class_names=class_names,
    )
    splits = {split: data.videos(split) for split in SPLITS if data.has(split)}
    if not splits:
        raise UserError(f"There are no videos in {root}: neither lists nor folders of class folders.")
    paths = sorted({path for videos in splits.values() for path, _ in videos})
    faults = find_faults(paths, workers or os.cpu_count() or 1, seconds)

    folder = Path(output or root)
    for split, videos in splits.items():
        clean = [(path, label) for path, label in videos if path not in faults]
        text = "".join(f"{_relative(path, Path(root))}\t{data.class_ids[label]}\n" for path, label in clean)
        replace_file(folder / f"{split}_clean.txt", partial(Path.write_text, data=text))
        print(f"{split}: {len(clean)} of {len(videos)} videos decode fully: {folder / f'{split}_clean.txt'}")
    for path, reason in faults.items():
        print(f"  {path}: {reason}")

    def write(file: Path) -> None:
        with file.open("w", newline="") as table:
            csv.writer(table).writerows([("path", "reason"), *faults.items()])

    replace_file(folder / "faulty_videos.csv", write)
    return faults


def optimize(
    dataset: Literal["imagenet"],
    root: str,
    output: str,
    workers: int | None = None,
    shard_mb: float = 64.0,
    skip_faulty: bool = False,
    class_names: str | None = None,
    train_dir: str = "train",
    val_dir: str = "val",
    val_list: str | None = None,
) -> None:
    """Packs the images of a dataset into a few large files, to be streamed: shards, which data.root may name.

    The bytes of the images stay as they are; each is decoded once, to be sure of it. Run again after an interruption,
    it goes on: shards that are finished stay.

    Args:
        dataset: kind of dataset; the settings from class_names on are those of its datamodule.
        root: dataset folder.
        output: folder to write train/ and val/ to.
        workers: processes that read and write; default: one per core.
        shard_mb: size of a shard in 10⁶ bytes.
        skip_faulty: leave out images that cannot be read, instead of stopping at the first one.
        class_names: class list.
        train_dir: folder of training classes.
        val_dir: folder of validation classes.
        val_list: list of validation images.

    Raises:
        UserError: there are no images, one cannot be read, the shards cannot be written, or an argument is out of its
            range.
    """
    if (workers is not None and workers < 1) or not 0 < shard_mb <= 2000:
        raise UserError(f"workers is {workers}, shard_mb {shard_mb:g}; expected at least 1, and above 0 to 2000")
    data = ImageNetDataModule(
        root, num_workers=0, train_dir=train_dir, val_dir=val_dir, class_names=class_names, val_list=val_list
    )
    data.check_classes()
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    images = {split: _stored_images(data, split) for split in splits if data.has(split)}
    if not images:
        data.samples("train")  # says what is missing
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Name another place.") from error
    lock(folder)
    for split, chosen in images.items():
        faults: dict[str, str] = {}
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(f"Writing {split}", total=len(chosen))
            for done, faulty in write_shards(
                folder / split,
                chosen,
                Classes(data.class_ids, data.class_names),
                shard_bytes=int(shard_mb * 1e6),
                shuffle=split == "train",
                skip_faulty=skip_faulty,
                workers=workers or os.cpu_count() or 1,
            ):
                progress.advance(task, done)
                faults |= faulty
        shards = len(list((folder / split).glob("*.bin")))
        print(f"{split}: {len(chosen) - len(faults)} of {len(chosen)} images in {shards} shards: {folder / split}")
        for name, reason in faults.items():
            print(f"  left out: {name}: {reason}")


def _stored_images(data: ImageNetDataModule, split: Literal["train", "val"]) -> list[StoredImage]:
    root = Path(data.root or "").expanduser()
    return [
        StoredImage(path, _relative(path, root), data.class_ids[label])
        for path, label in data.samples(split)
        if isinstance(label, int)
    ]


def find_faults(paths: list[str], workers: int = 1, seconds: float = 120.0) -> dict[str, str]:
    """The videos that do not decode fully, in order, and why.

    Args:
        paths: The files.
        workers: Processes that decode.
        seconds: Time after which a video counts as hung.
    """
    with ThreadPoolExecutor(workers) as pool:
        # Each thread has a process of its own: when that dies, it is known of what.
        lanes = [_Lane(seconds) for _ in range(workers)]
        free = list(lanes)

        def decode(path: str) -> str | None:
            lane = free.pop()
            try:
                return lane.fault(path)
            finally:
                free.append(lane)

        try:
            found: list[Future[str | None]] = [pool.submit(decode, path) for path in paths]
            order = track(found, "Decoding", disable=not sys.stderr.isatty())
            reasons = [future.result() for future in order]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # when interrupted, no further video is begun
            for lane in lanes:
                lane.end()
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


class _Lane:
    """A process that decodes one video after the other, replaced when it dies or hangs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.pool: ProcessPoolExecutor | None = None

    def fault(self, path: str) -> str | None:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(decoding_fault, path).result(self.seconds)
        except BrokenProcessPool:
            self.end()
            return "its decoder crashed"
        except concurrent.futures.TimeoutError:
            self.end()
            return f"its decoder did not end within {self.seconds:g} s"

    def end(self) -> None:
        if self.pool is not None:
            for process in list(self.pool._processes.values()):  # a hung one would keep the pool, which has no kill yet
                process.kill()
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None


def decoding_fault(path: str) -> str | None:
    """Why a video is not whole or does not decode in full, in words; None if it does. By the reader of training."""
    return find_damage(path)


def _relative(path: str, root: Path) -> str:
    """A path as seen from the dataset's folder, where it is in it."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else str(Path(path).absolute())
