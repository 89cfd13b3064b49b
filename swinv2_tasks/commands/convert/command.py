"""``swinv2-tasks data convert``: a dataset of any layout that is read, written in a layout of the same task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from swinv2_tasks.commands.check.datasets import TaskName, open_datamodule
from swinv2_tasks.commands.convert.files import Copier
from swinv2_tasks.commands.convert.images import write_table_of_images
from swinv2_tasks.commands.convert.objects import write_coco, write_voc, write_yolo
from swinv2_tasks.commands.convert.scenes import write_scenes
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.errors import ArgumentsError, UserError
from swinv2_tasks.files import is_inside, new_folder
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import printable, say

SPLITS: tuple[Split, ...] = ("train", "val", "test")

Target = Literal["coco", "yolo", "voc", "ade20k", "csv"]


class Conversion(NamedTuple):
    """What is read for a layout, and what writes it."""

    task: TaskName
    write: Callable[[Any, list[Split], Path, Copier], None]


CONVERSIONS: dict[Target, Conversion] = {
    "coco": Conversion("coco", write_coco),
    "yolo": Conversion("coco", write_yolo),
    "voc": Conversion("coco", write_voc),
    "ade20k": Conversion("ade20k", write_scenes),
    "csv": Conversion("imagenet", write_table_of_images),
}


def convert(
    root: str, output: str, to: Target | None = None, links: bool = False, settings: list[str] | None = None
) -> None:
    """Writes a dataset in another layout of its task: images are copied, labels are written anew.

    What the other layout cannot say is left out, which is printed. The output folder appears when it is complete.

    Args:
        root: dataset folder, of any layout that is read.
        output: folder to write, which must be new or empty.
        to: the layout: objects as coco, yolo or voc, scenes as ade20k, labeled images as csv.
        links: write links to the images instead of copies.
        settings: further arguments, of fit, that describe the data: ``--config FILE``, ``--data.…``.

    Raises:
        UserError: the dataset is not in order, or the folder cannot be written.
    """
    if to is None:
        raise ArgumentsError(f"data convert: --to names the layout to write: {', '.join(CONVERSIONS)}.")
    folder, source_folder = Path(output).expanduser(), Path(root).expanduser()
    if not source_folder.is_dir():
        raise ArgumentsError(f"data convert: the folder {printable(root)} does not exist: name the dataset's folder.")
    if is_inside(folder.resolve(), source_folder.resolve()):
        raise ArgumentsError(
            f"data convert: {printable(folder)} is inside the dataset, which is not changed: name a folder elsewhere."
        )
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise UserError(f"{printable(folder)} is there already: name a new folder, or remove it.")

    conversion = CONVERSIONS[to]
    data = open_datamodule(conversion.task, root, settings or [], tolerates_faults=False)
    splits = [split for split in SPLITS if data.source_on_disk.has(split)]
    if not splits:
        raise UserError(f"There are no data in {printable(root)}.")
    with new_folder(folder) as unfinished:
        copier = Copier(links)
        conversion.write(data, splits, unfinished, copier)
    say(f"{printable(folder)} holds the dataset as {to}: {count_words(copier.number, 'image')}")
    if copier.renamed:
        name, new = copier.renamed[0]
        say(f"{count_words(len(copier.renamed), 'image')} renamed, as {printable(name)}, which is {printable(new)} now")
