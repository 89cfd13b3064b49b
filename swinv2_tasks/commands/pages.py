"""Pages that commands write: where they go."""

from __future__ import annotations

from pathlib import Path

from swinv2_tasks.errors import ArgumentsError
from swinv2_tasks.files import is_inside
from swinv2_tasks.pages import embed as embed  # by both names
from swinv2_tasks.pages import write_page as write_page
from swinv2_tasks.text import printable
from swinv2_tasks.training.run_folder import open_folder


def choose_output(command: str, task: str, root: str, output: str | None) -> Path:
    """The folder of a page, made: the one stated, else COMMAND/NAME, with the last part of the dataset's path.

    Args:
        command: The subcommand of data that writes it.
        task: Of the dataset.
        root: The dataset.
        output: The folder stated.

    Raises:
        ArgumentsError: It is inside the dataset, which stays unchanged.
    """
    dataset = Path(root).expanduser().resolve()
    folder = Path(output).expanduser() if output is not None else Path(command) / dataset.name
    if is_inside(folder.resolve(), dataset):
        raise ArgumentsError(
            f"--output: {printable(folder)} is inside the dataset {printable(root)}, which data {command} {task} "
            "leaves unchanged: name a folder elsewhere."
        )
    open_folder(folder, "--output")
    return folder
