"""Pages of HTML: one file each, without requests; all that files say is escaped."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from swinv2_tasks.files import replace_file

QUALITY = 80
"""Of JPEG, with colors of full resolution: thin lines in a color of their own stay so."""

LEAST_SIDE = 64
"""Pixels that the longer side of a picture keeps, however little room there is."""


def write_page(path: Path, template: str, values: Mapping[str, Any], script: str | None = None) -> None:
    """Writes a page.

    Args:
        path: The file.
        template: Name of a file below the package's folder, which extends page.html.
        values: What the template names; what comes from files as ``text.printable`` gives it. All is escaped.
        script: Name of a JavaScript file below the package's folder, which runs once the page is there: the only one
            that browsers run in it. None: they run none.

    Raises:
        UserError: It cannot be written.
    """
    import jinja2  # of the packages that a training does without

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    code = _read(script) if script else ""
    text = environment.get_template(template).render({**values, "script": code, "script_hash": _content_hash(code)})
    replace_file(path, lambda unfinished: unfinished.write_text(text, "utf-8"))


def _read(name: str) -> str:
    """A text file of the package."""
    return resources.files("swinv2_tasks").joinpath(name).read_text("utf-8")


def _content_hash(code: str) -> str:
    """The hash of a script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}"


def reduce(image: Image.Image, side: int) -> Image.Image:
    """An image whose longer side has at most so many pixels; a smaller one unchanged."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


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
