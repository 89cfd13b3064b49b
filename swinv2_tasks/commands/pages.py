"""Pages of commands: one file each without scripts or requests; all that files say is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from swinv2_tasks.callbacks.batch_pictures import reduce
from swinv2_tasks.errors import ArgumentsError
from swinv2_tasks.files import is_inside, replace_file
from swinv2_tasks.text import printable
from swinv2_tasks.training.run_folder import open_folder

QUALITY = 80
"""Of JPEG, with colors of full resolution: thin lines in a color of their own stay so."""

LEAST_SIDE = 64
"""Pixels that the longer side of a picture keeps, however little room there is."""


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


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Writes a page.

    Args:
        path: The file.
        template: Name of a file below this folder, which extends page.html.
        values: What the template names; what comes from files as ``printable`` gives it. All is escaped.

    Raises:
        UserError: It cannot be written.
    """
    loader = jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.get_template(template).render(values)
    replace_file(path, lambda unfinished: unfinished.write_text(text, "utf-8"))


def embed(image: Image.Image, most_bytes: float = float("inf")) -> tuple[str, bool]:
    """An image as the data URL of a JPEG, and whether it was reduced for it.

    Args:
        image: RGB.
        most_bytes: What the JPEG may have: until it fits, or has sides of `LEAST_SIDE`, the image is reduced.
    """
    content, is_reduced = _encode(image), False
    while len(content) > most_bytes and max(image.size) > LEAST_SIDE:
        image = reduce(image, max(LEAST_SIDE, max(image.size) * 4 // 5))
        content, is_reduced = _encode(image), True
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}", is_reduced


def _encode(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue()
