"""``swinv2-tasks data``: looks after datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from swinv2_tasks.child_processes import available_cores, decode_in_processes, without_working_folder
from swinv2_tasks.commands.browse.command import MOST_BROWSED, Choice, browse_dataset
from swinv2_tasks.commands.check.command import check_dataset
from swinv2_tasks.commands.check.datasets import TaskName, open_datamodule
from swinv2_tasks.commands.convert.command import convert as convert  # one of its subcommands
from swinv2_tasks.commands.pages import choose_output
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule
from swinv2_tasks.datamodules.kinetics import KineticsDataModule
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.readers.kinetics import VideoFiles
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.video_lists import list_line
from swinv2_tasks.datamodules.readers.video_verdicts import TABLE, Verdict, VerdictFile
from swinv2_tasks.datamodules.readers.videos import find_corruption
from swinv2_tasks.datamodules.shards import StoredImage, is_url, write_shards
from swinv2_tasks.errors import ArgumentsError, FaultyFiles, Interrupted, UserError, name_signal
from swinv2_tasks.files import prove_writable, replace_file
from swinv2_tasks.progress import WorkProgress, count_words
from swinv2_tasks.stopping import advising
from swinv2_tasks.tables import write_table
from swinv2_tasks.text import printable, say
from swinv2_tasks.training.run_folder import lock, open_folder

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def check(
    task: TaskName,
    root: str,
    output: str | None = None,
    workers: int | None = None,
    seconds: float = 120.0,
    class_names: str | None = None,
    files: VideoFiles = VideoFiles(),
    json: str | None = None,
    settings: list[str] | None = None,
) -> None:
    """Looks for what is wrong in a dataset before anything is trained on it, and writes a page of what was found.

    Every file is read in full, in processes of their own: files that are corrupt, copies within and across splits,
    classes without samples, boxes and masks that do not fit. What was measured is kept in the output folder as it
    comes: run again, after a stop or later, the command reads what is new or has changed since.

    Of videos every frame is decoded. SPLIT_clean.txt holds those of a split that decode fully, for
    data.files.SPLIT_list; faulty_videos.csv the others. Each verdict is in checked_videos.csv, in the dataset's folder,
    as soon as it is reached. fit, validate and test go by these verdicts.

    Args:
        task: of the dataset, by the name of its config; the other settings are those of its datamodule.
        root: dataset folder.
        output: folder to write check.html and check.json to; default: check/NAME, NAME being the dataset folder's.
            Of videos also the lists; default: root. checked_videos.csv is written there only when nothing can be
            written to root.
        workers: processes that read; default: one per core. 0: the command's own, but for videos.
        seconds: time after which the reading of a file counts as hung.
        class_names: class list or label map.
        files: where the videos of each split are.
        json: another file to write the findings to.
        settings: further arguments, of fit, that describe the data: ``--config FILE``, ``--data.…``.

    Raises:
        FaultyFiles: there are errors, in files or labels; all is written.
        UserError: there are no samples, a list is not in order, nothing can be written to the folder, or an argument is
            out of its range.
    """
    least = 1 if task == "kinetics" else 0
    if (workers is not None and workers < least) or seconds <= 0:
        raise UserError(f"workers is {workers}, seconds {seconds:g}; expected at least {least} and above 0")
    if not Path(root).expanduser().is_dir():
        raise ArgumentsError(f"data check {task}: the folder {printable(root)} does not exist.")
    stated: dict[str, Any] = {} if class_names is None else {"class_names": class_names}
    if task == "kinetics":
        stated |= {"files": files} if files != VideoFiles() else {}
    elif files != VideoFiles():
        raise ArgumentsError(f"data check {task}: --files is of videos; name others by --data.files.")
    if task == "simmim" and class_names is not None:
        raise ArgumentsError("data check simmim: --class_names: there are no classes.")

    data = open_datamodule(task, root, settings or [], **stated)
    workers = available_cores() if workers is None else workers
    if task != "kinetics":
        folder = choose_output("check", task, root, output)
        findings = check_dataset(task, root, data, folder, workers, seconds, json)
        faults: dict[str, str] = {}
    else:
        folder = Path(output or root)
        faults, number = _check_videos(data, root, folder, workers, seconds)
        findings = check_dataset(task, root, data, folder, workers, seconds, json, faults)
    if faults:
        raise FaultyFiles(f"{len(faults)} of {number} videos are faulty: {printable(folder / FAULTY)} says why", faults)
    if errors := findings.total("error"):
        raise FaultyFiles(f"{count_words(errors, 'error')} in {printable(root)}, listed above", {})


def browse(
    task: TaskName,
    root: str,
    augmented: bool = False,
    split: Split | None = None,
    number: int = 24,
    class_: str | None = None,
    seed: int = 0,
    output: str | None = None,
    json: str | None = None,
    settings: list[str] | None = None,
) -> None:
    """Writes a page of a dataset's samples with their labels drawn.

    Without a class, each class is shown about as often as any other, where that is known without reading files.

    Args:
        task: of the dataset, by the name of its config; the other settings are those of its datamodule.
        root: dataset folder.
        augmented: show training samples as the model gets them, several draws of each, instead of what the files have.
        split: show this split alone.
        number: samples of each split, at most.
        class_: show samples of this class alone; its name or its id.
        seed: of the choice of samples, and of their augmentation.
        output: folder to write browse.html to; default: browse/NAME, NAME being the dataset folder's.
        json: a file to list the samples in, with their labels, and why some cannot be read.
        settings: further arguments, of fit, that describe the data: ``--config FILE``, ``--data.…``.

    Raises:
        FaultyFiles: some samples cannot be read; the page shows which and why.
        UserError: there are no such samples, labels are not in order, or an argument is out of its range.
    """
    if not 1 <= number <= MOST_BROWSED:
        raise ArgumentsError(f"data browse: --number {number}: expected 1 to {MOST_BROWSED}.")
    if not 0 <= seed < 2**32:
        raise ArgumentsError(f"data browse: --seed {seed}: expected a number from 0 to 2³² − 1.")
    if not is_url(root) and not Path(root).expanduser().is_dir():
        raise ArgumentsError(f"data browse {task}: the folder {printable(root)} does not exist.")
    data = open_datamodule(task, root, settings or [], takes_config=augmented)
    choice = Choice(number, seed, augmented, split, class_)
    browse_dataset(task, root, data, choose_output("browse", task, root, output), choice, json)


FAULTY = "faulty_videos.csv"
"""The table of videos that do not decode."""


def _check_videos(
    data: KineticsDataModule, root: str, folder: Path, workers: int, seconds: float
) -> tuple[dict[str, str], int]:
    """Decodes every frame of every video and writes the lists; returns why some are faulty, and of how many."""
    splits = {split: data.videos(split) for split in SPLITS if data.has(split)}
    if not splits:
        raise UserError(f"There are no videos in {printable(root)}: neither lists nor folders of class folders.")
    open_folder(folder, "--output")
    paths = sorted({path for videos in splits.values() for path, _ in videos})
    with VerdictFile(_verdict_folder(Path(root), folder) / TABLE) as verdicts:
        faults = _check_all(paths, verdicts, workers, seconds)
    for split, videos in splits.items():
        faults |= _write_list(folder / f"{split}_clean.txt", split, videos, faults, Path(root), data)

    table = folder / FAULTY
    faults = dict(sorted(faults.items()))
    replace_file(table, partial(write_table, rows=[("path", "reason"), *faults.items()]))
    for path, reason in faults.items():
        say(f"  {printable(path)}: {printable(reason)}")
    return faults, len(paths)


def _verdict_folder(root: Path, output: Path) -> Path:
    """Where verdicts are kept: with the data, so that all commands find them, or with the lists."""
    if os.path.realpath(root) == os.path.realpath(output):
        return root
    try:
        prove_writable(root, "root")
    except UserError as error:
        say(
            f"{printable(error)} So verdicts go to {printable(output / TABLE)}, where other commands look for them "
            "only when a list there is named, as with data.files.train_list."
        )
        return output
    lock(root)
    return root


def _check_all(paths: list[str], verdicts: VerdictFile, workers: int, seconds: float) -> dict[str, str]:
    """Reaches the verdicts that are not there yet; returns the reason for each faulty video."""
    faults, unchecked = {}, []
    for path in paths:
        verdict = verdicts.find(path)
        if verdict is None or not verdict.is_final:
            unchecked.append(path)
        elif verdict.reason:
            faults[path] = verdict.reason
    number = len(paths) - len(unchecked)
    if number:
        say(f"{number} of {len(paths)} videos have not changed since they were checked ({printable(verdicts.path)})")

    try:
        with WorkProgress("Decoding", len(unchecked)) as progress:
            for path, verdict in find_faults(unchecked, workers, seconds):
                verdicts.add(path, verdict)
                if verdict.reason:
                    faults[path] = verdict.reason
                number += 1
                progress.advance(faulty=bool(verdict.reason))
    except Interrupted as interrupted:
        raise Interrupted(
            f"stopped by {name_signal(interrupted.signal)}: {number} of {len(paths)} videos are checked, "
            f"{len(faults)} of them faulty, see {printable(verdicts.path)}. "
            "The same command resumes with the others and then writes the lists.",
            interrupted.signal,
        ) from interrupted
    return faults


def _write_list(
    file: Path,
    split: Split,
    videos: Sequence[VideoSample],
    faults: dict[str, str],
    root: Path,
    data: KineticsDataModule,
) -> dict[str, str]:
    """Writes the list of a split's videos that are not faulty; returns those that no list can name, with the reason."""
    lines, unlisted = [], {}
    for path, label in videos:
        if path in faults:
            continue
        labels = [str(data.class_ids[index]) for index in ([label] if isinstance(label, int) else label)]
        line = list_line(_relative(path, root), labels, bool(data.multi_label))
        if line is None:
            unlisted[path] = (
                "it decodes, but no list can hold its name (line break, quotation mark) or its labels' (|, ;): rename "
                "the file or the class"
            )
        else:
            lines.append(line)
    content = "".join(f"{line}\n" for line in lines)
    replace_file(file, lambda path: path.write_text(content, "utf-8", "surrogateescape", newline=""))
    say(f"{split}: {len(lines)} of {len(videos)} videos decode fully: {printable(file)}")
    return unlisted


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

    The bytes of the images stay unchanged; each is decoded once, to be sure of it. Run again after an interruption, it
    resumes: shards that are finished stay. Images that cannot be read are listed at the end and in
    faulty_images.csv; all shards that hold none of them are written by then.

    Args:
        dataset: kind of dataset; the settings from class_names on are those of its datamodule.
        root: dataset folder.
        output: folder to write train/ and val/ to.
        workers: processes that read and write; default: one per core.
        shard_mb: size of a shard in 10⁶ bytes.
        skip_faulty: leave out images that cannot be read, instead of leaving their shards to be written once they are
            mended.
        class_names: class list.
        train_dir: folder of training classes.
        val_dir: folder of validation classes.
        val_list: list of validation images.

    Raises:
        FaultyFiles: some images cannot be read, and may not be left out; all other shards are written.
        UserError: there are no images, the shards cannot be written, or an argument is out of its range.
    """
    if (workers is not None and workers < 1) or not 0 < shard_mb <= 2000:
        raise UserError(f"workers is {workers}, shard_mb {shard_mb:g}; expected at least 1, and above 0 to 2000")
    data = ImageNetDataModule(
        root, num_workers=0, train_dir=train_dir, val_dir=val_dir, class_names=class_names, val_list=val_list
    )
    if data.multi_label:
        raise UserError(
            f"{printable(root)} has images of several labels, which shards do not hold: train from the folder itself."
        )
    data.check_classes()
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    images = {split: _stored_images(data, split) for split in splits if data.has(split)}
    if not images:
        data.samples("train")  # says what is missing
    folder = Path(output).expanduser()
    open_folder(folder, "output")
    all_faults: dict[str, str] = {}
    for split, split_images in images.items():
        faults: dict[str, str] = {}
        with (
            WorkProgress(f"Writing {split}", len(split_images)) as progress,
            without_working_folder(),
            advising("Shards that are finished are kept, the same command resumes with the others"),
        ):
            for number, faulty in write_shards(
                folder / split,
                split_images,
                Classes(data.class_ids, data.class_names),
                shard_bytes=int(shard_mb * 1e6),
                shuffle=split == "train",
                skip_faulty=skip_faulty,
                workers=workers or available_cores(),
            ):
                progress.advance(number, len(faulty))
                faults |= faulty
        all_faults |= faults
        if faults and not skip_faulty:
            say(f"{split}: not finished, as {len(faults)} of {len(split_images)} images cannot be read")
        else:
            shards = len(list((folder / split).glob("*.bin")))
            stored = len(split_images) - len(faults)
            say(f"{split}: {stored} of {len(split_images)} images in {shards} shards: {printable(folder / split)}")
        for name, reason in faults.items():
            say(f"  {'left out' if skip_faulty else 'faulty'}: {printable(name)}: {printable(reason)}")
    table = folder / "faulty_images.csv"
    if all_faults or table.is_file():
        replace_file(table, partial(write_table, rows=[("image", "reason"), *all_faults.items()]))
    if all_faults and not skip_faulty:
        raise FaultyFiles(
            f"{len(all_faults)} images cannot be read: {printable(table)} says why. Mend them and run the same command "
            "again, which writes the shards that are missing; or leave such images out: --skip_faulty true.",
            all_faults,
        )


def _stored_images(data: ImageNetDataModule, split: Literal["train", "val"]) -> list[StoredImage]:
    root = Path(data.root or "").expanduser()
    return [
        StoredImage(path, _relative(path, root), data.class_ids[label])
        for path, label in data.samples(split)
        if isinstance(label, int)
    ]


def find_faults(paths: list[str], workers: int = 1, seconds: float = 120.0) -> Iterator[tuple[str, Verdict]]:
    """Decodes videos in processes of their own.

    Args:
        paths: The files.
        workers: Processes that decode.
        seconds: Time after which a video counts as hung.

    Yields:
        Each file with the verdict, as soon as it is reached.
    """
    for path, outcome in decode_in_processes(decoding_fault, paths, workers, seconds):
        yield path, Verdict(outcome.reason or outcome.value or "", is_final=not outcome.reason)


def decoding_fault(path: str) -> str | None:
    """Why a video is not whole or does not decode in full, in words; None if it does. By the reader of training."""
    return find_corruption(path)


def _relative(path: str, root: Path) -> str:
    """A path as seen from the dataset's folder, where it is in it."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else str(Path(path).absolute())
