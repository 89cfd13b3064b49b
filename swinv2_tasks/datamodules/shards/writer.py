"""Writing images into shards: in several processes, continuing where an earlier attempt ended.

Shards are written to NAME.partial. Its plan.jsonl first says which samples each shard gets, then, line by line, which
shards are whole. When all are, order and index are written, and the folder gets its name.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swinv2_tasks.child_processes import TIMEOUT, follow_parent, timeout_seconds
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.readers.images import MOST_FILE_BYTES, read_image
from swinv2_tasks.datamodules.shards.reader import CONFIG, INDEX, MOST_INDEX_BYTES, ORDER, litdata_module
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.outside_files import StoredFile, load_json, read_bytes, read_json, read_text
from swinv2_tasks.progress import in_words
from swinv2_tasks.python_internals import kill_workers
from swinv2_tasks.text import printable

PLAN = "plan.jsonl"


class StoredImage(NamedTuple):
    """An image to be stored."""

    path: str
    """Its file."""
    name: str
    """What the shards call it: its path as seen from the dataset's folder."""
    class_id: str


class Job(NamedTuple):
    """One shard to be written."""

    folder: Path
    number: int
    images: list[StoredImage]
    skip_faulty: bool


def write_shards(
    folder: Path,
    images: Sequence[StoredImage],
    classes: Classes,
    shard_bytes: int,
    shuffle: bool,
    skip_faulty: bool = False,
    workers: int = 1,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Writes a split into shards; what an earlier attempt has finished is kept.

    Args:
        folder: The folder of the shards. It does not exist until all of them are written.
        images: The images, in the order of the dataset.
        classes: The class list of the dataset.
        shard_bytes: Bytes of images in a shard, about.
        shuffle: Store them in a random order, always the same, rather than in that of the dataset.
        skip_faulty: Leave out images that cannot be read. Otherwise shards with such images are not written, all others
            are, and the folder stays unfinished.
        workers: Processes that read and write.

    Yields:
        After each shard, how many images it was to hold, and which of them are faulty, with the reason. First of all,
        as one, what is there from an earlier attempt.

    Raises:
        UserError: The disk is at fault, no image can be read, or the folder holds other images.
    """
    litdata_module()  # raises before anything else
    identity = _identity(images, classes, shard_bytes, shuffle)
    if folder.exists():
        yield len(images), _read_finished(folder, identity, skip_faulty)
        return
    partial = folder.with_name(f"{folder.name}.partial")
    order = np.random.default_rng(0).permutation(len(images)) if shuffle else np.arange(len(images))
    bounds, done = _read_plan(partial, identity, skip_faulty)
    if not bounds:
        bounds = _bounds((_size(images[i].path) for i in order.tolist()), shard_bytes)
    lines = [{"identity": identity, "bounds": bounds}, *done.values()]
    replace_file(partial / PLAN, lambda path: path.write_text("".join(map(_line, lines)), "utf-8"))
    yield sum(bounds[number + 1] - bounds[number] for number in done), _faults(done.values())

    jobs = [
        Job(partial, number, [images[i] for i in order[begin:end].tolist()], skip_faulty)
        for number, (begin, end) in enumerate(pairwise(bounds))
        if number not in done
    ]
    is_finished = True
    with (partial / PLAN).open("a", encoding="utf-8") as plan:
        for entry in _run(jobs, workers):
            if entry["faulty"] and not skip_faulty:
                is_finished = False
            else:
                plan.write(_line(entry))
                plan.flush()
                done[entry["number"]] = entry
            yield bounds[entry["number"] + 1] - bounds[entry["number"]], entry["faulty"]

    if not is_finished:
        return
    faults = _faults(done.values())
    stored = order[[images[i].name not in faults for i in order.tolist()]]
    if not len(stored):
        raise UserError(f"No image for {folder} can be read. {next(iter(faults.values()))}")
    chunks = [entry["chunk"] for _, entry in sorted(done.items()) if entry["chunk"]]
    index = {
        "chunks": chunks,
        "config": CONFIG,
        "classes": asdict(classes),
        "identity": identity,
        "faulty": faults,
    }
    replace_file(partial / ORDER, lambda path: _save_array(path, np.argsort(stored).astype(np.uint32)))
    replace_file(partial / INDEX, lambda path: path.write_text(json.dumps(index), "utf-8"))
    partial.rename(folder)
    (folder / PLAN).unlink()


def write_shard(job: Job) -> dict[str, Any]:
    """Writes one shard, or nothing when none of its images can be read, or one cannot and may not be left out.

    Returns:
        Its `number`, its `chunk` as the index lists it or None, and its `faulty` images by name.

    Raises:
        UserError: The shard cannot be written.
    """
    samples, faulty = [], {}
    for image in job.images:
        try:
            read_image(image.path)
            content = read_bytes(image.path, MOST_FILE_BYTES)
        except (UserError, OSError) as error:
            faulty[image.name] = str(error)
            continue
        samples.append((content, os.fsencode(image.class_id), os.fsencode(image.name)))
    path = job.folder / f"chunk-0-{job.number}.bin"
    if not samples or (faulty and not job.skip_faulty):
        return {"number": job.number, "chunk": None, "faulty": faulty}
    replace_file(path, lambda temporary: _write_chunk(temporary, samples))
    size = path.stat().st_size
    chunk = {"filename": path.name, "chunk_bytes": size, "chunk_size": len(samples), "dim": None}
    return {"number": job.number, "chunk": chunk, "faulty": faulty}


def _write_chunk(path: Path, samples: list[tuple[bytes, bytes, bytes]]) -> None:
    from litdata.streaming.writer import BinaryWriter

    # This limit is never met: what a shard holds is the plan's choice.
    writer = BinaryWriter(str(path.parent), chunk_bytes=2**32 - 1)
    for number, sample in enumerate(samples):
        writer.add_item(number, sample)
    (written,) = writer.done()
    config = writer.get_config()
    if any(config[key] != value for key, value in CONFIG.items() if key != "chunk_bytes"):
        raise UserError("this version of litdata writes another format: install the one in constraints.txt")
    os.replace(written, path)


def _run(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    if min(workers, len(jobs)) <= 1:
        yield from map(write_shard, jobs)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "litdata.streaming.writer"])  # imported once for all workers
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=follow_parent)
    is_done = False
    try:
        missing = {pool.submit(write_shard, job) for job in jobs}
        while missing:
            done, missing = wait(missing, timeout=timeout_seconds(), return_when=FIRST_COMPLETED)
            if not done:
                raise UserError(
                    f"No shard was finished for {in_words(timeout_seconds())}: a process that writes them to "
                    f"{printable(jobs[0].folder)} hangs. Run the same command again, which keeps finished shards; if "
                    f"reading is that slow, set the environment variable {TIMEOUT} to more seconds."
                )
            for future in done:
                yield future.result()
        is_done = True
    except BrokenProcessPool as error:
        raise UserError(
            "A process that writes shards died, perhaps for want of memory. Run the same command again, with fewer "
            "--workers or a smaller --shard_mb; finished shards are kept."
        ) from error
    finally:
        if is_done:
            pool.shutdown(wait=False)
        else:  # none is waited for; half a shard has another name
            kill_workers(pool)


def _bounds(sizes: Iterable[int], shard_bytes: int) -> list[int]:
    """Where shards begin, and the end: each is filled until it has the size that was asked for."""
    bounds, filled, number = [0], 0, 0
    for number, size in enumerate(sizes):
        if filled and filled + size > shard_bytes:
            bounds.append(number)
            filled = 0
        filled += size
    return [*bounds, number + 1]


def _identity(images: Sequence[StoredImage], classes: Classes, shard_bytes: int, shuffle: bool) -> str:
    """A checksum of what is to be written."""
    checksum = hashlib.sha256(json.dumps([asdict(classes), shard_bytes, shuffle]).encode())
    for image in images:
        checksum.update(json.dumps([image.name, image.class_id]).encode())
    return checksum.hexdigest()


def _read_finished(folder: Path, identity: str, skip_faulty: bool) -> dict[str, str]:
    """The faulty images that shards which are whole were written without."""
    try:
        index = read_json(folder / INDEX, MOST_INDEX_BYTES)
        faults = dict(index["faulty"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} exists, but not as a folder of such shards. Name another folder.") from error
    _check(folder, index, faults, identity, skip_faulty)
    (folder / PLAN).unlink(missing_ok=True)  # where a kill came before
    return faults


def _read_plan(folder: Path, identity: str, skip_faulty: bool) -> tuple[list[int], dict[int, dict[str, Any]]]:
    """What an earlier attempt has planned, and what it has finished of it."""
    entries: list[dict[str, Any]] = []
    try:
        for line in read_text(folder / PLAN).splitlines():
            entries.append(load_json(line))
    except (FileNotFoundError, ValueError):
        pass  # the last line was cut off by a kill
    if not entries:
        return [], {}
    plan, *shards = entries
    done = {entry["number"]: entry for entry in shards if _is_whole(folder, entry["chunk"])}
    _check(folder, plan, _faults(done.values()), identity, skip_faulty)
    return plan["bounds"], done


def _check(folder: Path, plan: dict[str, Any], faults: dict[str, str], identity: str, skip_faulty: bool) -> None:
    if plan.get("identity") != identity:
        raise UserError(
            f"{folder} holds shards of other images, classes or sizes than these. Remove it to write them again, or "
            "name another folder."
        )
    if faults and not skip_faulty:
        raise UserError(
            f"{folder} was written without {len(faults)} images that could not be read, such as "
            f"{printable(next(iter(faults)))}. Keep to it with --skip_faulty true, or "
            "mend them and remove the folder to write it again."
        )


def _is_whole(folder: Path, chunk: dict[str, Any] | None) -> bool:
    return chunk is None or _size(folder / chunk["filename"]) == chunk["chunk_bytes"]


def _size(path: str | Path) -> int:
    if isinstance(path, StoredFile):
        with suppress(OSError):  # as is reported when it is packed
            return path.count_bytes()
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _faults(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {name: reason for entry in entries for name, reason in entry["faulty"].items()}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)
