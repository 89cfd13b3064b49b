"""Which value or color of a label map stands for which class, and which are left out.

Label maps do not say it themselves: ADE20K's count classes from 1 and have 0 for pixels of no class, others count from
0, have 255 for either, or hold colors. Settings say it. Where they do not, the label maps are looked at, and what can
be read in two ways is refused.

A value below is a number from 0 to 255 or a color 0xRRGGBB.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.classes import abbreviate, read_lines
from swinv2_tasks.datamodules.readers.label_maps import LabelMap, read_colors, read_values, values_image
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

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
        label_values: Class name of each value, instead of background.
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

    def mapped(self, names: Sequence[str], index_of: Sequence[int | None]) -> "LabelCoding":
        """The same values as other classes.

        Args:
            names: Of these.
            index_of: For each class here, the index of the other that it is; None where its pixels are left out.
        """
        ordered = sorted(self.class_of.items(), key=lambda pair: pair[1])  # the id is that of the first class
        class_of = {value: new for value, index in ordered if (new := index_of[index]) is not None}
        ignored = self.ignored | {value for value, index in ordered if index_of[index] is None}
        return replace(self, names=names, class_of=class_of, ignored=ignored)

    def read(self, label_map: str | LabelMap) -> np.ndarray:
        """Read a label map.

        Returns:
            Class indices, uint8 (H, W), 255 where a pixel is left out.

        Raises:
            UserError: The file cannot be read, or holds values of no meaning; the message has its name and the counts.
        """
        if self.has_colors:
            values = _read(label_map, has_colors=True)
            known, indices = self._sorted
            # Where each color would stand among the known ones; it is known if it stands there.
            positions = np.searchsorted(known, values).clip(max=len(known) - 1)
            labels = np.where(known[positions] == values, indices[positions], np.uint8(_UNKNOWN))
        else:
            values = _read(label_map, has_colors=False)
            labels = self._table[values]

        if (labels == _UNKNOWN).any():
            raise misfit([self], [_count(label_map, values)], f"The label map {printable(str(label_map))} does")
        return labels

    def fits(self, counts: Iterable[int]) -> bool:
        """Whether all values are of a class or left out."""
        return all(value in self.class_of or value in self.ignored for value in counts)

    @property
    def meaning(self) -> str:
        """What the values are, in words."""
        left_out = [f"{self._format(value)} is left out" for value in sorted(self.ignored)]
        classes = [f"{self._format(value)} is {self.names[index]}" for value, index in self.class_of.items()]
        if len(classes) > 4:
            classes = [*classes[:2], "…", classes[-1]]
        return ", ".join([*left_out, *classes])

    def _format(self, value: int) -> str:
        return format_value(value, self.has_colors)

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


def format_value(value: int, is_color: bool) -> str:
    """A value as messages and tables have it: a number, or R,G,B."""
    if not is_color:
        return str(value)
    red, green, blue = value >> 16, value >> 8 & 255, value & 255
    return f"{red},{green},{blue}"


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
    meanings = {"background": settings.background, "label_values": settings.label_values, "palette": settings.palette}
    stated = [name for name, value in meanings.items() if value is not None]
    if len(stated) > 1:
        raise UserError(
            f"{' and '.join(prefix + name for name in stated)} each say what label maps hold: set one of them, the "
            "others to null."
        )

    ignored = _ignored_values(settings)
    if settings.palette is not None:
        colors = palette_colors(settings.palette, names, prefix)
        class_of = {_pack(color): index for index, color in enumerate(colors)}
        coding = LabelCoding(names, class_of, ignored, has_colors=True, background=None, prefix=prefix)
        return [_check_coding(coding, "palette")]
    if settings.label_values is not None:
        class_of = _values_by_name(settings.label_values, names, prefix)
        coding = LabelCoding(names, class_of, ignored, has_colors=False, background=None, prefix=prefix)
        return [_check_coding(coding, "label_values")]

    # Classes are counted: from 1, with 0 left out, or from 0.
    counted_from_1 = {index + 1: index for index in range(len(names))}
    counted_from_0 = {index: index for index in range(len(names))}
    ignoring_0 = LabelCoding(names, counted_from_1, ignored | {0}, False, background="ignore", prefix=prefix)
    counting_0 = LabelCoding(names, counted_from_0, ignored, False, background="class", prefix=prefix)
    if settings.background is not None:
        return [_check_coding(ignoring_0 if settings.background == "ignore" else counting_0, "background")]
    if is_ade20k:
        return [_check_coding(ignoring_0, "class_names (ADE20K's)")]
    possible = [coding for coding in (ignoring_0, counting_0) if not coding.ignored & coding.class_of.keys()]
    return possible or [_check_coding(ignoring_0, "class_names")]


def _ignored_values(settings: LabelSettings) -> frozenset[int]:
    """The values of `ignore_label`."""
    name, stated = f"{settings.prefix}ignore_label", settings.ignore_label
    if stated is None:
        return frozenset()
    values = stated if isinstance(stated, list) else [stated]

    if settings.palette is None:
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
            raise UserError(f"{name} is {stated}; expected numbers from 0 to 255.")
        return frozenset(value for value in values if isinstance(value, int))

    if not all(_is_color(value) for value in values):
        raise UserError(f"{name} is {stated}; expected colors, as {settings.prefix}palette has them: [[R, G, B], …].")
    return frozenset(_pack(value) for value in values if not isinstance(value, int))


def _check_coding(coding: LabelCoding, setting: str) -> LabelCoding:
    """The coding itself, once it is made sure that no value is both of a class and left out."""
    both = sorted(coding.ignored & coding.class_of.keys())
    if both:
        raise UserError(
            f"{coding.prefix}ignore_label leaves out {', '.join(map(coding._format, both))}, which by "
            f"{coding.prefix}{setting} is {coding.names[coding.class_of[both[0]]]}: change one of the two."
        )
    return coding


def _values_by_name(label_values: dict[int, str], names: Sequence[str], prefix: str) -> dict[int, int]:
    """Class index of each value, of a mapping to names."""
    problems: dict[str, list[int] | list[str]] = {
        "has values that are not from 0 to 255": [value for value in label_values if not 0 <= value <= 255],
        "names classes that the list does not have": [name for name in label_values.values() if name not in names],
        "has no value for these classes": [name for name in names if name not in label_values.values()],
        "goes by names, but several classes share one": [name for name, count in Counter(names).items() if count > 1],
    }
    for problem, examples in problems.items():
        if examples:
            raise UserError(
                f"{prefix}label_values {problem}: {abbreviate(examples)}. Classes ({prefix}class_names): "
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


def _pack(color: Sequence[int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


# ---- label maps


@dataclass(frozen=True)
class MapCounts:
    """How many pixels of a label map have each value."""

    path: Path
    pixels: dict[int, int]


def count_values(
    label_maps: Sequence[LabelMap], has_colors: bool, most: int, skip_faulty: bool = False
) -> list[MapCounts]:
    """Count the values of label maps: of all, or of so many that are spread evenly.

    Args:
        label_maps: The files, or what draws them.
        has_colors: Whether values are colors.
        most: How many are read at most.
        skip_faulty: Leave out those that cannot be read.

    Raises:
        UserError: One cannot be read.
    """
    sample, number = list(label_maps), len(label_maps)
    if number > most:  # the middle of each of so many equal parts
        sample = [label_maps[(2 * k + 1) * number // (2 * most)] for k in range(most)]

    def count(label_map: LabelMap) -> MapCounts | None:
        try:
            return _count(label_map, _read(label_map, has_colors))
        except UserError:
            if skip_faulty:
                return None
            raise

    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        return [counts for counts in pool.map(count, sample) if counts is not None]


def _read(label_map: str | LabelMap, has_colors: bool) -> np.ndarray:
    """The numbers or colors of a label map, (H, W)."""
    if not isinstance(label_map, str | Path):
        return label_map.draw()
    return read_colors(label_map) if has_colors else read_values(label_map)


def _count(label_map: str | LabelMap, values: np.ndarray) -> MapCounts:
    """How many pixels have each value."""
    path = Path(str(label_map))
    if values.dtype == np.uint8:  # faster
        pixels = np.bincount(values.ravel(), minlength=256)
        return MapCounts(path, {int(value): int(pixels[value]) for value in np.flatnonzero(pixels)})
    distinct, pixels = np.unique(values, return_counts=True)
    return MapCounts(path, dict(zip(distinct.tolist(), pixels.tolist(), strict=True)))


def fitting_coding(
    codings: Sequence[LabelCoding],
    maps: Sequence[MapCounts],
    folder: str,
    tolerated: int = 0,
    remedy: Callable[[int], str] | None = None,
) -> LabelCoding:
    """The one way to read label maps that fits what they hold.

    Args:
        codings: The ways that settings leave open.
        maps: What was counted.
        folder: Where the label maps are.
        tolerated: How many may fit none, since they will be skipped.
        remedy: How to leave out so many, in words; None: they cannot be left out.

    Raises:
        UserError: None fits, or more than one; the message has the counts of the values and the settings.
    """
    readable = [label_map for label_map in maps if any(coding.fits(label_map.pixels) for coding in codings)]
    number = len(maps) - len(readable)
    if number > tolerated or not readable:
        advice = remedy(number) if remedy is not None and readable else ""
        raise misfit(codings, maps, f"The label maps in {folder} do", advice)

    # Of two, counting from 1 fits whatever counting from 0 does: only the number of classes as a value decides.
    fitting = [coding for coding in codings if all(coding.fits(label_map.pixels) for label_map in readable)]
    if len(fitting) == 1:
        return fitting[0]
    prefix = fitting[0].prefix
    choices = "; or ".join(f"{prefix}background={coding.background}: {coding.meaning}" for coding in fitting)
    raise UserError(
        f"The label maps in {folder} can be read in two ways, and nothing says which: {_list_values(maps, False)}. Set "
        f"{choices}. Or name the class of each value: {prefix}label_values."
    )


def classes_of_values(maps: Sequence[MapCounts], folder: str) -> tuple[list[str], LabelSettings]:
    """Names of classes, and what label maps hold, where nothing says either: each value is a class, but 255 is none.

    Args:
        maps: What was counted, in all label maps.
        folder: Where they are.

    Raises:
        UserError: There are only two values, 0 and 255, which may be two classes or one.
    """
    values = sorted({value for label_map in maps for value in label_map.pixels})
    if values == [0, 255]:
        raise UserError(
            f"The label maps in {folder} hold 0 and 255, and nothing says what these are: two classes, "
            "data.label_values={0: background, 255: object}; or one class and what is left out, data.ignore_label=255."
        )
    classes = {value: str(value) for value in values if value != IGNORED}
    settings = LabelSettings(ignore_label=IGNORED if IGNORED in values else None, label_values=classes)
    return list(classes.values()), settings


def misfit(codings: Sequence[LabelCoding], maps: Sequence[MapCounts], subject: str, advice: str = "") -> UserError:
    """What to say of label maps with values of no meaning; `subject` ends with do or does; `advice` is one more."""
    first, prefix = codings[0], codings[0].prefix
    values = sorted({value for label_map in maps for value in label_map.pixels})
    unknown = [value for value in values if not any(coding.fits([value]) for coding in codings)]

    text = f"{subject} not fit the {len(first.names)} classes ({abbreviate(first.names)})"
    if unknown:
        text += f": {', '.join(map(first._format, unknown[:12]))}{', …' * (len(unknown) > 12)} "
        text += "is no class" if len(unknown) == 1 else "are no class"
        if len(maps) > 1:
            example = next(label_map.path for label_map in maps if unknown[0] in label_map.pixels)
            text += f" (as in {printable(example)})"
    text += f". Pixels of each value: {_list_values(maps, first.has_colors)}. "
    if len(codings) == 1:
        text += f"As set, {first.meaning}. "

    remedies = []
    if unknown:
        remedies.append(f"to leave values out, {prefix}ignore_label={_as_setting(unknown[:3], first.has_colors)}")
    if first.has_colors:
        remedies.append(f"other colors of classes, {prefix}palette")
    else:
        remedies.append(f"to count classes from 0, {prefix}background=class; from 1, with 0 left out, =ignore")
        is_binary = values in ([0, 255], [0, 1, 255]) and len(first.names) == 2
        pairs = zip((0, 255), first.names, strict=True) if is_binary else [("VALUE", "CLASS")]
        mapping = ", ".join(f"{value}: {name}" for value, name in pairs)
        remedies.append(f"to name the class of each value, {prefix}label_values={{{mapping}}}")
    remedies.append(f"other classes, {prefix}class_names")
    if advice:
        remedies.append(f"or {advice}")
    return UserError(f"{text}Say what they are: {'; '.join(remedies)}.")


def _as_setting(values: Sequence[int], are_colors: bool) -> str:
    """Values as `ignore_label` takes them."""
    items = [f"[{format_value(value, True)}]" if are_colors else str(value) for value in values]
    return f"[{','.join(items)}]" if are_colors or len(items) != 1 else items[0]


def total_pixels(maps: Iterable[MapCounts]) -> Counter[int]:
    """Pixels of each value in several label maps."""
    total: Counter[int] = Counter()
    for label_map in maps:
        total.update(label_map.pixels)
    return total


def _list_values(maps: Sequence[MapCounts], are_colors: bool, most: int = 16) -> str:
    """The values of label maps and their pixels, in words."""
    total = total_pixels(maps)
    pixels = total.total()
    most_frequent = sorted(total, key=lambda value: -total[value])[:most]
    parts = [
        f"{format_value(value, are_colors)}: {total[value]:,} ({share(total[value], pixels)})"
        for value in sorted(most_frequent)
    ]
    more = f", and {len(total) - most} more values" if len(total) > most else ""
    return ", ".join(parts) + more


def share(pixels: int, of: int) -> str:
    """A share in percent; what is there at all is not shown as nothing."""
    percent = 100 * pixels / max(1, of)
    return f"{percent:.2f} %" if percent >= 0.01 or not pixels else "<0.01 %"


def write_label_map(
    path: Path, labels: np.ndarray, class_ids: Sequence[int] | Sequence[str], colors: Sequence[Color]
) -> None:
    """Write a label map with the values of those that were trained on.

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
    if all(isinstance(class_id, int) for class_id in class_ids):
        values = [int(class_id) for class_id in class_ids]
        palette = dict(zip(values, colors, strict=False))
    else:  # colors, which the palette has for the class indices
        values = list(range(len(class_ids)))
        palette = {}
        for index, color in enumerate(class_ids):
            red, green, blue = bytes.fromhex(str(color).removeprefix("#"))
            palette[index] = (red, green, blue)
    table, stored = np.array(values, np.uint8), np.empty(labels.shape, np.uint8)
    for row, own in zip(stored, labels, strict=True):  # all at once, the indices would take eight bytes for each pixel
        row[:] = table[own]
    return values_image(stored, palette)
