"""A page of samples, read back: what stands on it, and the pixels of its pictures."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass
class Figure:
    """A sample as a page shows it."""

    split: str
    is_faulty: bool
    pictures: list[tuple[str, str]] = field(default_factory=list)
    """Alternative text and address."""
    lines: list[str] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Text and color, #rrggbb."""
    paragraphs: list[str] = field(default_factory=list)
    caption: str = ""

    def pixels(self, number: int = 0) -> np.ndarray:
        """A picture, float64 (H, W, 3)."""
        head, _, content = self.pictures[number][1].partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            return np.asarray(image.convert("RGB")).astype(float)


class BrowsedPage(HTMLParser):
    """The figures of a page, and all its tags with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.figures: list[Figure] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._split = ""
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)
        assert self._open == [], "not all elements are closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        if tag == "h2":
            self._split = named["id"]
        if tag == "figure":
            self.figures.append(Figure(self._split, named.get("class") == "faulty"))
        if tag == "img":
            self.figures[-1].pictures.append((named["alt"], named["src"]))
        if tag == "span" and named.get("class") == "swatch":
            match = re.fullmatch("background:(#[0-9a-f]{6})", named["style"])
            assert match is not None
            self.figures[-1].legend.append(("", match[1]))
        if tag not in ("img", "meta", "br"):
            self._open.append((tag, named, []))

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        opened, named, texts = self._open.pop()
        assert opened == tag
        text = "".join(texts).strip()
        if tag == "figcaption":
            self.figures[-1].caption = text
        elif tag == "p" and named.get("class") == "line":
            self.figures[-1].lines.append(text)
        elif tag == "p" and self.figures:
            self.figures[-1].paragraphs.append(text)
        elif tag == "li" and self.figures[-1].legend and not self.figures[-1].legend[-1][0]:
            self.figures[-1].legend[-1] = (text, self.figures[-1].legend[-1][1])

    def of(self, split: str) -> list[Figure]:
        """The figures of a split."""
        return [figure for figure in self.figures if figure.split == split]

    def captions(self, split: str) -> set[str]:
        """The files of a split."""
        return {figure.caption for figure in self.of(split)}
