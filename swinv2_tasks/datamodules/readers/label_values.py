"""Which value or color of a label map stands for which class, and which are left out.

Label maps do not say it themselves: ADE20K's count classes from 1 and have 0 for pixels of no class, others count from
0, have 255 for either, or hold colors. Settings say it. Where they do not, the label maps are looked at, and what can
be read in two ways is refused.

A value below is a number from 0 to 255 or a color 0xRRGGBB.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.classes import abbreviate, read_lines
from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values, values_image
from swinv2_tasks.errors import UserError, printable

Background = Literal["ignore", "class"]
"""What the value 0 is: no class, so that classes count from 1; or the first class."""

Color = tuple[int, int, int]

_UNKNOWN = 254
"""Marks values of no meaning in tables of class indices: there are at most 254 classes."""


@dataclass(frozen=True)
class LabelSettings:
    """What is said about the pixels of label maps.

    Args:
        background: What 0 is; None: nothing is said.
        ignore_label: Values that are left out: a number or several; with a palette, colors [R, G, B].
        label_values: Class name of each value, in the place of background.
        palette: Label maps hold colors: [R, G, B] of each class in their order, or a text file with `R G B` or
            `R G B NAME` lines.
        prefix: What messages write before the names of settings.
    """

    background: Background | None = None
    ignore_label: int | list[int] | list[list[int]] | None = None
    label_values: dict[int, str] | None = None
    palette: str | list[list[int]] | None = None
    prefix: str = "data."


@dataclass(frozen=True)
class LabelCoding:
    """One way to read label maps.

    Attributes:
        names: Of the classes.
        class_of: Class index of each value.
        ignored: Values that are left out.
        has_colors: Whether values are colors.
        background: What 0 is, where classes are counted.
        prefix: What messages write before the names of settings.
    """

    names: Sequence[str]
    class_of: dict[int, int]
    ignored: frozenset[int]
    has_colors: bool
    background: Background | None
    prefix: str

    @cached_property
    def class_ids(self) -> list[int] | list[str]:
        """What label maps hold for each class, the first one where there are several: a number, or `#rrggbb`."""
        first: dict[int, int] = {}
        for value, index in self.class_of.items():
            first.setdefault(index, value)
        values = [first[index] for index in range(len(self.names))]
        return [f"#{value:06x}" for value in values] if self.has_colors else values

    def read(self, path: str | Path) -> np.ndarray:
        """Read a label map.

        Returns:
            Class indices, uint8 (H, W), 255 where a pixel is left out.

        Raises:
            UserError: The file cannot be read, or holds values of no meaning; the message has its name and the counts.
        """
        values = read_colors(path) if self.has_colors else read_values(path)
        if self.has_colors:
            known, indices = self._sorted
            places = np.searchsorted(known, values).clip(max=len(known) - 1)
            labels = np.where(known[places] == values, indices[places], np.uint8(_UNKNOWN))
        else:
            labels = self._table[values]
        if (labels == _UNKNOWN).any():
            raise misfit([self], [_counted(path, values)], f"The label map {printable(path)} does")
        return labels

    def fits(self, counts: Iterable[int]) -> bool:
        """Whether all values are of a class or left out."""
        return all(value in self.class_of or value in self.ignored for value in counts)

    @property
    def meaning(self) -> str:
        """What the values are, in words."""
        parts = [f"{self._shown(value)} is {self.names[index]}" for value, index in self.class_of.items()]
        shown = parts if len(parts) <= 4 else [*parts[:2], "…", parts[-1]]
        left_out = [f"{self._shown(value)} is left out" for value in sorted(self.ignored)]
        return ", ".join([*left_out, *shown])

    def _shown(self, value: int) -> str:
        return shown_value(value, self.has_colors)

    @cached_property
    def _table(self) -> np.ndarray:
        """Class index of each number, uint8 (256,)."""
        table = np.full(256, _UNKNOWN, np.uint8)
        table[[*self.ignored]] = IGNORED
        table[[*self.class_of]] = [*self.class_of.values()]
        return table

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """All known colors in ascending order, and the class index of each."""
        indices = {**dict.fromkeys(self.ignored, IGNORED), **self.class_of}
        known = sorted(indices)
        return np.array(known, np.int32), np.array([indices[value] for value in known], np.uint8)


def shown_value(value: int, is_color: bool) -> str:
    """A value as messages and tables have it: a number, or R,G,B."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}" if is_color else str(value)


# ---- settings


def possible_codings(names: Sequence[str], settings: LabelSettings, is_ade20k: bool) -> list[LabelCoding]:
    """The ways to read label maps that settings leave open: one, or two where nothing says what 0 is.

    Args:
        names: Of the classes.
        settings: What is said.
        is_ade20k: Whether these are ADE20K's own classes, of whose label maps it is known: 0 is no class.

    Raises:
        UserError: Settings are out of their range or contradict each other or the classes.
    """
    prefix = settings.prefix
    stated = [name for name in ("background", "label_values", "palette") if getattr(settings, name) is not None]
    if len(stated) > 1:
        raise UserError(
            f"{' and '.join(prefix + name for name in stated)} each say what label maps hold: set one of them, the "
            "others to null."
        )
    ignored = _ignored(settings)
    if settings.palette is not None:
        colors = palette_colors(settings.palette, names, prefix)
        coded = {_packed(color): index for index, color in enumerate(colors)}
        return [_checked(LabelCoding(names, coded, ignored, True, None, prefix), "palette")]
    if settings.label_values is not None:
        coded = _values_by_name(settings.label_values, names, prefix)
        return [_checked(LabelCoding(names, coded, ignored, False, None, prefix), "label_values")]
    from_one = LabelCoding(names, {k + 1: k for k in range(len(names))}, ignored | {0}, False, "ignore", prefix)
    from_zero = LabelCoding(names, {k: k for k in range(len(names))}, ignored, False, "class", prefix)
    if settings.background is not None:
        return [_checked(from_one if settings.background == "ignore" else from_zero, "background")]
    if is_ade20k:
        return [_checked(from_one, "class_names (ADE20K's)")]
    open_to = [coding for coding in (from_one, from_zero) if not coding.ignored & coding.class_of.keys()]
    return open_to or [_checked(from_one, "class_names")]


def _ignored(settings: LabelSettings) -> frozenset[int]:
    """The values of `ignore_label`."""
    stated = settings.ignore_label
    values = [] if stated is None else stated if isinstance(stated, list) else [stated]
    name = f"{settings.prefix}ignore_label"
    if settings.palette is None:
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
            raise UserError(f"{name} is {stated}; expected numbers from 0 to 255.")
        return frozenset(value for value in values if isinstance(value, int))
    if not all(_is_color(value) for value in values):
        raise UserError(f"{name} is {stated}; expected colors, as {settings.prefix}palette has them: [[R, G, B], …].")
    return frozenset(_packed(value) for value in values if not isinstance(value, int))


def _checked(coding: LabelCoding, setting: str) -> LabelCoding:
    """The same, made sure that no value is of a class and left out."""
    both = sorted(coding.ignored & coding.class_of.keys())
    if both:
        raise UserError(
            f"{coding.prefix}ignore_label leaves out {', '.join(map(coding._shown, both))}, which by "
            f"{coding.prefix}{setting} is {coding.names[coding.class_of[both[0]]]}: change one of the two."
        )
    return coding


def _values_by_name(label_values: dict[int, str], names: Sequence[str], prefix: str) -> dict[int, int]:
    """Class index of each value, of a mapping to names."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    unknown = [name for name in label_values.values() if name not in names]
    valueless = [name for name in names if name not in label_values.values()]
    wrong = [value for value in label_values if not 0 <= value <= 255]
    for found, problem in (
        (wrong, "has values that are not from 0 to 255"),
        (unknown, "names classes that the list does not have"),
        (valueless, "has no value for these classes"),
        (repeated, "goes by names, but several classes share one"),
    ):
        if found:
            raise UserError(
                f"{prefix}label_values {problem}: {abbreviate(found)}. Classes ({prefix}class_names): "
                f"{abbreviate(names, 12)}."
            )
    return {value: list(names).index(name) for value, name in label_values.items()}


def palette_colors(palette: str | Path | Sequence[Sequence[int]], names: Sequence[str], prefix: str) -> list[Color]:
    """The color of each class.

    Args:
        palette: A list in the order of the classes; or a text file with a line for each, `R G B` in their order, or
            `R G B NAME` in any.
        names: Of the classes.
        prefix: What messages write before the names of settings.

    Raises:
        UserError: The file cannot be read, it is no such list, or two classes share a color.
    """
    where = f"{prefix}palette"
    if isinstance(palette, str | Path):
        where = f"{palette} ({prefix}palette)"
        palette = _colors_of_lines(palette, names, where)
    if len(palette) != len(names):
        raise UserError(
            f"{where} has {len(palette)} colors for {len(names)} classes ({abbreviate(names)}); expected one for each."
        )
    if wrong := [list(color) for color in palette if not _is_color(color)]:
        raise UserError(f"{where} has {wrong[0]}; expected red, green and blue from 0 to 255.")
    colors: list[Color] = [(red, green, blue) for red, green, blue in palette]
    if shared := [color for color, count in Counter(colors).items() if count > 1]:
        alike = [name for name, color in zip(names, colors, strict=True) if color == shared[0]]
        raise UserError(f"{where} has the color {shared[0]} for {abbreviate(alike)}; expected one of its own for each.")
    return colors


def _colors_of_lines(path: str | Path, names: Sequence[str], where: str) -> list[list[int]]:
    expected = "`R G B` or `R G B NAME` lines"
    rows: list[tuple[list[int], str]] = []
    for number, line in enumerate(read_lines(path, "palette", expected), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?:[\s,;]+(\S.*?))?\s*", line)
        if match is None:
            raise UserError(f"{where}, line {number}: {line.strip()!r} is no color; expected {expected}.")
        rows.append(([int(match[1]), int(match[2]), int(match[3])], match[4] or ""))
    named = {name: color for color, name in rows if name}
    if not named:
        return [color for color, _ in rows]
    if missing := [name for name in names if name not in named]:
        raise UserError(f"{where} has no color for {abbreviate(missing)}; it names {abbreviate([*named], 12)}.")
    return [named[name] for name in names]


def _is_color(color: object) -> bool:
    if not isinstance(color, list | tuple) or len(color) != 3:
        return False
    return all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color)


def _packed(color: Sequence[int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


# ---- label maps


@dataclass(frozen=True)
class MapCounts:
    """How many pixels of a label map have each value."""

    path: Path
    pixels: dict[int, int]


def count_values(paths: Sequence[Path], has_colors: bool, most: int, skip_faulty: bool = False) -> list[MapCounts]:
    """Count the values of label maps: of all, or of so many that are spread evenly.

    Args:
        paths: The files.
        has_colors: Whether values are colors.
        most: How many files are read at most.
        skip_faulty: Leave out files that cannot be read.

    Raises:
        UserError: A file cannot be read.
    """
    chosen = list(paths)
    if len(paths) > most:
        chosen = [paths[(2 * k + 1) * len(paths) // (2 * most)] for k in range(most)]

    def count(path: Path) -> MapCounts | None:
        try:
            return _counted(path, read_colors(path) if has_colors else read_values(path))
        except UserError:
            if skip_faulty:
                return None
            raise

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [counts for counts in pool.map(count, chosen) if counts is not None]


def _counted(path: str | Path, values: np.ndarray) -> MapCounts:
    if values.dtype == np.uint8:
        pixels = np.bincount(values.ravel(), minlength=256)
        return MapCounts(Path(path), {int(value): int(pixels[value]) for value in np.flatnonzero(pixels)})
    found, pixels = np.unique(values, return_counts=True)
    return MapCounts(Path(path), dict(zip(found.tolist(), pixels.tolist(), strict=True)))


def fitting_coding(
    codings: Sequence[LabelCoding], maps: Sequence[MapCounts], place: str, tolerated: int = 0
) -> LabelCoding:
    """The one way to read label maps that fits what they hold.

    Args:
        codings: The ways that settings leave open.
        maps: What was counted.
        place: Where the label maps are.
        tolerated: How many may fit none, since they will be skipped.

    Raises:
        UserError: None fits, or more than one; the message has the counts of the values and the settings.
    """
    readable = [one for one in maps if any(coding.fits(one.pixels) for coding in codings)]
    if len(maps) - len(readable) > tolerated or not readable:
        raise misfit(codings, maps, f"The label maps in {place} do")

    # Of two, counting from 1 fits whatever counting from 0 does: only the number of classes as a value tells.
    fitting = [coding for coding in codings if all(coding.fits(one.pixels) for one in readable)]
    if len(fitting) == 1:
        return fitting[0]
    prefix = fitting[0].prefix
    choices = "; or ".join(f"{prefix}background={coding.background}: {coding.meaning}" for coding in fitting)
    raise UserError(
        f"The label maps in {place} can be read in two ways, and nothing says which: {_listed(maps, False)}. Set "
        f"{choices}. Or name the class of each value: {prefix}label_values."
    )


def misfit(codings: Sequence[LabelCoding], maps: Sequence[MapCounts], subject: str) -> UserError:
    """What to say of label maps with values of no meaning; `subject` ends with do or does."""
    first, prefix = codings[0], codings[0].prefix
    found = sorted({value for one in maps for value in one.pixels})
    unknown = [value for value in found if not any(coding.fits([value]) for coding in codings)]
    example = next((one.path for one in maps if unknown and unknown[0] in one.pixels), None)
    text = f"{subject} not fit the {len(first.names)} classes ({abbreviate(first.names)})"
    if unknown:
        text += f": {', '.join(map(first._shown, unknown[:12]))}{', …' * (len(unknown) > 12)} "
        text += "is no class" if len(unknown) == 1 else "are no class"
        text += f" (as in {printable(example)})" if len(maps) > 1 else ""
    text += f". Pixels of each value: {_listed(maps, first.has_colors)}. "
    if len(codings) == 1:
        text += f"As set, {first.meaning}. "
    ways = (
        [f"to leave values out, {prefix}ignore_label={_as_setting(unknown[:3], first.has_colors)}"] if unknown else []
    )
    if first.has_colors:
        ways.append(f"other colors of classes, {prefix}palette")
    else:
        ways.append(f"to count classes from 0, {prefix}background=class; from 1, with 0 left out, =ignore")
        binary = found in ([0, 255], [0, 1, 255]) and len(first.names) == 2
        pairs = zip((0, 255), first.names, strict=False) if binary else [("VALUE", "CLASS")]
        mapping = ", ".join(f"{value}: {name}" for value, name in pairs)
        ways.append(f"to name the class of each value, {prefix}label_values={{{mapping}}}")
    ways.append(f"other classes, {prefix}class_names")
    if len(maps) > 1 and prefix == "data.":
        ways.append("to leave out the label maps that do not fit, data.faulty_samples=skip")
    return UserError(f"{text}Say what they are: {'; '.join(ways)}.")


def _as_setting(values: Sequence[int], are_colors: bool) -> str:
    """Values as `ignore_label` takes them."""
    items = [f"[{shown_value(value, True)}]" if are_colors else str(value) for value in values]
    return f"[{','.join(items)}]" if are_colors or len(items) != 1 else items[0]


def total_pixels(maps: Iterable[MapCounts]) -> Counter[int]:
    """Pixels of each value in several label maps."""
    total: Counter[int] = Counter()
    for one in maps:
        total.update(one.pixels)
    return total


def _listed(maps: Sequence[MapCounts], are_colors: bool, most: int = 16) -> str:
    """The values of label maps and their pixels, in words."""
    total = total_pixels(maps)
    pixels = total.total()
    shown = sorted(sorted(total, key=lambda value: -total[value])[:most])
    parts = [f"{shown_value(value, are_colors)}: {total[value]:,} ({share(total[value], pixels)})" for value in shown]
    more = f", and {len(total) - most} more values" if len(total) > most else ""
    return ", ".join(parts) + more


def share(pixels: int, of: int) -> str:
    """A share in percent; what is there at all is not shown as nothing."""
    percent = 100 * pixels / max(1, of)
    return f"{percent:.2f} %" if percent >= 0.01 or not pixels else "<0.01 %"


def write_label_map(
    path: Path, labels: np.ndarray, class_ids: Sequence[int] | Sequence[str], colors: Sequence[Color]
) -> None:
    """Write a label map that says of each pixel what those that were learned from say.

    Args:
        path: A PNG file; its folder must be there.
        labels: Class indices (H, W).
        class_ids: What label maps hold for each class: numbers, or colors `#rrggbb`.
        colors: RGB in which classes are shown; of those that are colors themselves, their own.
    """
    label_map_image(labels, class_ids, colors).save(path, compress_level=zlib.Z_BEST_SPEED)


def label_map_image(
    labels: np.ndarray, class_ids: Sequence[int] | Sequence[str], colors: Sequence[Color]
) -> Image.Image:
    """A label map as a palette image; see `write_label_map`."""
    values = list(range(len(class_ids)))
    shown = dict(zip(values, colors, strict=False))
    if all(isinstance(class_id, int) for class_id in class_ids):
        values = [int(class_id) for class_id in class_ids]
        shown = dict(zip(values, colors, strict=False))
    else:
        for index, color in enumerate(class_ids):
            red, green, blue = bytes.fromhex(str(color).removeprefix("#"))
            shown[index] = (red, green, blue)
    return values_image(np.array(values, np.uint8)[labels], shown)
