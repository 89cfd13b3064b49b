"""Colors are told apart, labels lie side by side, and letters of other alphabets have shapes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image

from swinv2_tasks.callbacks.detection import draw_objects
from swinv2_tasks.drawing import distinct_colors, label_font, place_labels, typeface


def lightness_and_opponents(color: tuple[int, int, int]) -> np.ndarray:
    """CIELAB by its definition, of sRGB under D65."""
    shares = np.array(color) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(matrix @ linear / (0.9505, 1, 1.089), 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("number", "least"), [(3, 40), (7, 25), (20, 15), (80, 7), (150, 5)])
def test_colors_are_far_from_each_other(number: int, least: float) -> None:
    points = [lightness_and_opponents(color) for color in distinct_colors(number)]
    closest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(points, 2))
    assert closest > least  # 2.3 is what is just told apart


def test_fewer_colors_are_the_first_ones_of_more() -> None:
    assert distinct_colors(5) == distinct_colors(254)[:5]
    assert len(set(distinct_colors(254))) == 254
    assert len(distinct_colors(1000)) == 1000


@pytest.mark.parametrize("number", [1, 2, 10, 40, 300])
def test_labels_do_not_lie_on_each_other(number: int) -> None:
    rng = np.random.default_rng(number)
    boxes = np.concatenate([rng.uniform(-10, 420, (number, 2)), rng.uniform(1, 120, (number, 2))], axis=1)
    sizes = [(int(width), 16) for width in rng.integers(30, 120, number)]
    positions = place_labels(boxes.tolist(), sizes, (430, 400))
    covered = np.zeros((400, 430), int)
    for position, (width, height) in zip(positions, sizes, strict=True):
        if position is not None:
            x, y = position
            assert 0 <= x <= 430 - width and 0 <= y <= 400 - height
            covered[y : y + height, x : x + width] += 1
    assert covered.max() == 1
    assert positions[0] is not None
    assert sum(position is not None for position in positions) >= min(number, 40)


def test_a_label_wider_than_the_image_begins_at_its_edge() -> None:
    assert place_labels([[5, 50, 10, 10]], [(500, 16)], (100, 100)) == [(0, 34)]


def test_objects_of_a_class_have_colors_and_labels_of_their_own() -> None:
    palette = distinct_colors(6)
    boxes = [([50.0 + 4 * k, 60.0 + 4 * k, 90.0, 80.0], "cup 90%", color) for k, color in enumerate(palette)]
    drawn = np.asarray(draw_objects(Image.new("RGB", (400, 400), (100, 100, 100)), (), boxes))
    width = int(typeface(14).getlength("cup 90%"))
    for color in palette:
        assert (drawn == color).all(axis=2).sum() > width * 14 / 2  # most of its label is to be seen


def test_labels_of_many_objects_are_smaller() -> None:
    few, many = (label_font(["a label"] * number, (800, 800)).size for number in (3, 200))
    assert many < few


def test_other_alphabets_have_letters() -> None:
    assert Path(str(typeface(20).path)).name == Path(findfont(FontProperties(family="DejaVu Sans"))).name
    missing = typeface(20).getmask("\U0010ffff")
    for letter in "éЖλאبŁ":
        assert bytes(typeface(20).getmask(letter)) != bytes(missing), letter
