"""Renderers of the sample data: shaded shapes over textured backgrounds, as images and clips.

Images are float32 (H, W, 3), RGB in [0, 1]. Positions are (x, y) in pixels; pixel i spans [i, i + 1). Angles are in
radians, clockwise on screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.random import Generator

SUPERSAMPLE = 4
"""Shapes are filled at four times the size and averaged down, which makes their edges smooth."""

MAX_ROTATION = 0.3
"""Shapes stand nearly upright (17 degrees either way): a small network is to learn them from scratch in a minute."""


def _arc(start: float, stop: float, count: int = 48) -> np.ndarray:
    """Points on the unit circle from angle start to stop: (count, 2)."""
    angle = np.linspace(start, stop, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _regular(corners: int) -> np.ndarray:
    """Corners of a regular polygon in the unit circle: (corners, 2)."""
    return _arc(0, 2 * np.pi, corners + 1)[:-1]


def _rotation(angle: float) -> np.ndarray:
    """The matrix (2, 2) that rotates points (n, 2), multiplied from the right."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _star() -> np.ndarray:
    return _regular(10) @ _rotation(-np.pi / 2) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]


def _cross() -> np.ndarray:
    arm, reach = 0.32, 0.94
    corners = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    return np.concatenate([corners @ _rotation(quarter * np.pi / 2) for quarter in range(4)])


def _crescent() -> np.ndarray:
    """A disc without what a smaller one beside its center covers: the outer arc, then the inner arc back."""
    beside, radius = 0.45, 0.8
    tip_x = (1 + beside**2 - radius**2) / (2 * beside)  # where the two circles meet
    tip = np.arccos(tip_x)
    inner_tip = np.arctan2(np.sin(tip), tip_x - beside)
    inner_arc = _arc(2 * np.pi - inner_tip, inner_tip) * radius + [beside, 0]
    return np.concatenate([_arc(tip, 2 * np.pi - tip), inner_arc])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 17.9


# Closed lines in the unit circle; what an odd number of them encloses is inside.
OUTLINES: dict[str, list[np.ndarray]] = {
    "disc": [_regular(64) * 0.9],
    "square": [_regular(4) @ _rotation(np.pi / 4)],
    "triangle": [_regular(3) @ _rotation(-np.pi / 2)],
    "star": [_star()],
    "ring": [_regular(64), _regular(64) * 0.55],
    "cross": [_cross()],
    "crescent": [_crescent()],
    "heart": [_heart()],
}

TEXTURES = ("stripes", "checker", "dots", "clouds", "gradient")

COLORS = {
    "stripes": (0.10, 0.20, 0.45),
    "checker": (0.40, 0.15, 0.15),
    "dots": (0.10, 0.35, 0.15),
    "clouds": (0.30, 0.15, 0.40),
    "gradient": (0.35, 0.35, 0.15),
    "disc": (0.95, 0.80, 0.30),
    "triangle": (0.50, 0.90, 0.50),
    "star": (0.60, 0.75, 1.00),
    "ring": (0.95, 0.55, 0.65),
}
"""The mean color of each class in scenes, RGB in [0, 1].

As sky is mostly blue and grass green: so a small network learns to find and outline them within a minute or two. In
single images and clips, colors do not depend on the class.
"""

MOTIONS = {
    "moves_up": ("position", -1),
    "moves_down": ("position", 1),
    "grows": ("size", 1),
    "shrinks": ("size", -1),
    "fades_in": ("opacity", 1),
    "fades_out": ("opacity", -1),
}
"""What changes in a clip, and in which direction.

Each class is another one played backwards, so neither a frame nor an average over time distinguishes the two. None
changes by a horizontal flip, which is part of training on Kinetics.
"""


@dataclass(frozen=True)
class Shape:
    """A shaded shape: its position and appearance."""

    class_name: str
    """A key of OUTLINES."""
    center: tuple[float, float]
    """(x, y) in pixels."""
    radius: float
    """Of the circle around it, in pixels."""
    angle: float
    """By which it is rotated."""
    color: np.ndarray
    """(3,) RGB in [0, 1]."""
    light: float
    """Angle that the light comes from."""

    def coverage(self, height: int, width: int) -> np.ndarray:
        """The share of each pixel that the shape covers: float32 (H, W) in [0, 1]."""
        lines = []
        for outline in OUTLINES[self.class_name]:
            points = (outline @ _rotation(self.angle) * self.radius + self.center) * SUPERSAMPLE
            # OpenCV counts from the middle of the first pixel, and here in sixteenths of a pixel.
            lines.append(np.round((points - 0.5) * 16).astype(np.int32))
        large = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
        cv2.fillPoly(large, lines, 255, shift=4)
        return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def shade(self, height: int, width: int) -> np.ndarray:
        """The colors of a dome under a slanting light (Lambert): float32 (H, W, 3) in [0, 1]."""
        x = (np.arange(width) + 0.5 - self.center[0]) / (1.3 * self.radius)
        y = (np.arange(height)[:, None] + 0.5 - self.center[1]) / (1.3 * self.radius)
        z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
        lambert = np.clip(0.6 * (x * np.cos(self.light) + y * np.sin(self.light)) + 0.8 * z, 0, 1)
        return ((0.6 + 0.4 * lambert)[..., None] * self.color).astype(np.float32)

    def draw(self, image: np.ndarray, opacity: float = 1.0) -> None:
        """Draws the shape over an image (H, W, 3), in place."""
        height, width = image.shape[:2]
        alpha = np.float32(opacity) * self.coverage(height, width)[..., None]
        image += alpha * (self.shade(height, width) - image)


@dataclass
class Scene:
    """An image drawn back to front, and the visible pixels of each object in it."""

    image: np.ndarray
    """float32 (H, W, 3) in [0, 1]; starts as the background."""
    colors: np.ndarray
    """(n, 3) RGB in [0, 1]: colors in use, from which those of further shapes differ."""
    class_names: list[str] = field(default_factory=list)
    """The class of each object: a key of OUTLINES."""
    masks: list[np.ndarray] = field(default_factory=list)
    """The visible pixels of each object, bool (H, W)."""
    full_areas: list[int] = field(default_factory=list)
    """The number of pixels of each object before others were drawn over it."""

    def add(self, shapes: list[Shape]) -> bool:
        """Draws shapes of a class as one object, unless they would hide half of another.

        Returns:
            Whether they were drawn.
        """
        height, width = self.image.shape[:2]
        covered = np.any([shape.coverage(height, width) > 0.5 for shape in shapes], axis=0)
        visible = [mask & ~covered for mask in self.masks]
        if any(mask.sum() <= area / 2 for mask, area in zip(visible, self.full_areas, strict=True)):
            return False

        for shape in shapes:
            shape.draw(self.image)
        self.colors = np.concatenate([self.colors, [shape.color for shape in shapes]])
        self.class_names.append(shapes[0].class_name)
        self.masks = [*visible, covered]
        self.full_areas.append(int(covered.sum()))
        return True

    def add_at_random(self, rng: Generator, class_name: str, radius: tuple[float, float]) -> None:
        """Adds a shape of a class, its radius in pixels between the two given; gives up after ten tries."""
        height, width = self.image.shape[:2]
        for _ in range(10):
            color = contrasting(class_colors(rng, class_name), self.colors)
            if self.add([random_shape(rng, class_name, (height, width), radius, 0.6, color)]):
                break


def random_shape(
    rng: Generator,
    class_name: str,
    size: tuple[int, int],
    radius: tuple[float, float],
    inside: float,
    color: np.ndarray,
) -> Shape:
    """A shape of random position, size, rotation and light.

    Args:
        rng: Draws all of them.
        class_name: A key of OUTLINES.
        size: (H, W) of the image in pixels.
        radius: Least and greatest radius in pixels.
        inside: How far the center stays from the image's edges, in radii; 1 keeps the whole shape in the image.
        color: (3,) RGB in [0, 1].
    """
    height, width = size
    r = rng.uniform(*radius)
    center = (rng.uniform(inside * r, width - inside * r), rng.uniform(inside * r, height - inside * r))
    angle, light = rng.uniform(-MAX_ROTATION, MAX_ROTATION), rng.uniform(0, 2 * np.pi)
    return Shape(class_name, center, r, angle, color, light)


def contrasting(colors: np.ndarray, avoid: np.ndarray) -> np.ndarray:
    """The color of (m, 3) that is farthest from all of avoid (n, 3): (3,)."""
    distance = np.linalg.norm(colors[:, None] - avoid, axis=2).min(axis=1)
    return colors[distance.argmax()]


def light_colors(rng: Generator) -> np.ndarray:
    """A dozen random colors for shapes: (12, 3)."""
    return rng.uniform(0.4, 1, (12, 3))


def dark_color(rng: Generator) -> np.ndarray:
    """A random color for a background: (3,)."""
    return rng.uniform(0.05, 0.45, 3)


def class_colors(rng: Generator, class_name: str) -> np.ndarray:
    """A dozen colors around the mean color of a class, a key of COLORS: (12, 3)."""
    return np.clip(COLORS[class_name] + rng.normal(0, 0.08, (12, 3)), 0, 1)


def texture(rng: Generator, name: str, height: int, width: int, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A background of a color and a random second one not far from it.

    Args:
        rng: Draws all that is random.
        name: One of TEXTURES.
        height: In pixels.
        width: In pixels.
        color: (3,) RGB in [0, 1].

    Returns:
        The image, float32 (H, W, 3), and the two colors (2, 3).
    """
    step = rng.normal(size=3)
    second = np.clip(color + 0.2 * step / np.linalg.norm(step), 0, 1)
    image = color + _pattern(rng, name, height, width)[..., None] * (second - color)
    image += rng.normal(0, 0.02, image.shape)
    return np.clip(image, 0, 1).astype(np.float32), np.stack([color, second])


def _pattern(rng: Generator, name: str, height: int, width: int) -> np.ndarray:
    """The share of a texture's second color in each pixel: (H, W) in [0, 1]."""
    if name == "clouds":
        coarse, middle, fine = (_smooth_noise(rng, cells, height, width) for cells in (5, 8, 14))
        clouds = coarse + middle / 2 + fine / 4
        return (clouds - clouds.min()) / np.ptp(clouds)

    angle = rng.uniform(0, np.pi)
    period = rng.uniform(10, 18)
    x = np.arange(width)
    y = np.arange(height)[:, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if name == "gradient":
        return (along - along.min()) / np.ptp(along)

    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(2 * np.pi * along / period + phase[0])
    cross_wave = np.sin(2 * np.pi * across / period + phase[1])
    waves = {
        "stripes": 2 * wave,
        "checker": 4 * wave * cross_wave,
        "dots": 4 * (wave + cross_wave - 1),
    }
    return np.clip(0.5 + waves[name], 0, 1)  # cut off, steep waves are flat patches with soft edges


def _smooth_noise(rng: Generator, cells: int, height: int, width: int) -> np.ndarray:
    """Random numbers in about [0, 1] on a grid of cells × cells, blended smoothly to (H, W)."""
    return cv2.resize(rng.uniform(size=(cells, cells)), (width, height), interpolation=cv2.INTER_CUBIC)


def classification_image(rng: Generator, class_name: str) -> np.ndarray:
    """A whole shape, 50 to 80 % as wide as the image's shorter side: float32 (H, W, 3) of 88 to 112 pixels a side."""
    height, width = (int(side) for side in rng.integers(88, 113, 2))
    image, colors = texture(rng, rng.choice(TEXTURES), height, width, dark_color(rng))
    color = contrasting(light_colors(rng), colors)
    shorter = min(height, width)
    random_shape(rng, class_name, (height, width), (0.25 * shorter, 0.4 * shorter), 1, color).draw(image)
    return image


def detection_scene(rng: Generator, class_names: Sequence[str], crowd: str | None = None) -> Scene:
    """One to five shapes over a texture, 120 to 160 pixels a side, none of them more than half hidden.

    Args:
        rng: Draws all that is random.
        class_names: The classes to choose from: keys of OUTLINES that have COLORS.
        crowd: The class of a dozen small shapes that are one more object, the first of the scene.
    """
    height, width = ((128, 160), (120, 160), (144, 160), (160, 128))[rng.integers(4)]
    scene = Scene(*texture(rng, rng.choice(TEXTURES), height, width, dark_color(rng)))

    if crowd:
        color = contrasting(class_colors(rng, crowd), scene.colors)
        shape = random_shape(rng, crowd, (height, width), (6, 6), 1, color)
        grid = np.array([(13 * column, 13 * row) for column in range(4) for row in range(3)])
        centers = rng.uniform(12, 50, 2) + grid + rng.uniform(-2, 2, grid.shape)
        scene.add([replace(shape, center=(x, y), angle=rng.uniform(0, 2 * np.pi)) for x, y in centers])

    for class_name in rng.choice(class_names, rng.integers(1, 6)):
        scene.add_at_random(rng, str(class_name), radius=(14, 32))
    return scene


def segmentation_scene(rng: Generator, things: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Two or three textures side by side and up to four shapes upon them, 112 to 144 pixels a side.

    Args:
        rng: Draws all that is random.
        things: The classes of shapes to choose from: keys of OUTLINES that have COLORS.

    Returns:
        The image, float32 (H, W, 3), and its labels, uint8 (H, W): from 1 on, TEXTURES and then things in their order;
        0 for the dark lines between textures.
    """
    height, width = ((128, 128), (128, 128), (112, 144), (144, 128))[rng.integers(4)]
    stuff = rng.permutation(len(TEXTURES))[: rng.integers(2, 4)]
    names = [TEXTURES[index] for index in stuff]
    textures = [texture(rng, name, height, width, class_colors(rng, name)[0]) for name in names]
    layers, pairs = zip(*textures, strict=True)

    nearest, line = _cells(rng, len(stuff), height, width)
    image = np.choose(nearest[..., None], layers)
    image[line] = 0.1
    labels = np.where(line, 0, stuff[nearest] + 1).astype(np.uint8)

    scene = Scene(image, np.concatenate(pairs))
    for class_name in rng.choice(things, rng.integers(2, 5)):
        scene.add_at_random(rng, str(class_name), radius=(16, 34))
    for class_name, mask in zip(scene.class_names, scene.masks, strict=True):
        labels[mask] = 1 + len(TEXTURES) + things.index(class_name)
    return scene.image, labels


def _cells(rng: Generator, number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides an image into cells: each pixel belongs to the nearest of so many sites (a Voronoi diagram).

    Returns:
        The index of each pixel's cell, int64 (H, W), and which pixels lie on a line between cells, bool (H, W).
    """
    x = np.arange(width) / width - 0.5
    y = np.arange(height)[:, None] / height - 0.5
    sites = 0.3 * _regular(number) @ _rotation(rng.uniform(0, 2 * np.pi))  # around the middle

    distances = []
    for site_x, site_y in sites:
        noise = _smooth_noise(rng, 4, height, width)  # bends the lines
        distances.append(np.hypot(x - site_x, y - site_y) + 0.2 * noise)

    closest, second = np.sort(distances, axis=0)[:2]
    return np.argmin(distances, axis=0), second - closest < 0.02


def motion_clip(rng: Generator, motion: str) -> np.ndarray:
    """A shape that moves, grows or fades: float32 (T, H, W, 3), 16 to 24 frames of 64 to 80 pixels a side.

    Position, size and opacity are phases in [0, 1), drawn uniformly. The motion, a key of MOTIONS, advances one of
    them, which starts over at its end; so every single frame is as likely in one class as in another.
    """
    # Not 72 pixels: decord finds a fourth channel in clips of that width (dmlc/decord issue 336).
    height, width = (int(side) for side in rng.choice((64, 76, 80), 2))
    background, colors = texture(rng, rng.choice(TEXTURES), height, width, dark_color(rng))
    color = contrasting(light_colors(rng), colors)
    shape = random_shape(rng, str(rng.choice(list(OUTLINES))), (height, width), (12, 26), 1, color)
    column = int(rng.integers(width // 4, 3 * width // 4))

    phases = dict(zip(("position", "size", "opacity"), rng.uniform(size=3), strict=True))
    changing, direction = MOTIONS[motion]
    length = int(rng.integers(16, 25))
    step = direction * rng.uniform(0.6, 1.0) / length

    frames = []
    for _ in range(length):
        # Top and bottom meet, so the shape is drawn in the middle of a background that is rolled there and back.
        row, below = divmod(phases["position"] * height, 1)
        shift = (int(row) - height // 2, column - width // 2)
        frame = np.roll(background, (-shift[0], -shift[1]), axis=(0, 1))

        radius = 12 * (26 / 12) ** phases["size"]
        opacity = 0.3 + 0.7 * phases["opacity"]
        replace(shape, center=(width / 2, height // 2 + below), radius=radius).draw(frame, opacity)
        frames.append(np.roll(frame, shift, axis=(0, 1)))

        phases[changing] = (phases[changing] + step) % 1
    return np.stack(frames)
