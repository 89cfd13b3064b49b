"""Checks of images' sizes and channels, and of videos' lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from swinv2_tasks.commands.check.facts import Facts
from swinv2_tasks.commands.check.findings import Findings

SMALLEST_SIDE = 32
LARGEST_PIXELS = 25_000_000
LONGEST = 5.0
"""Long side of an image as a multiple of the short one."""

MINORITY = 0.2
"""Share of the images below which those of another mode are pointed out."""


def small_image(facts: Facts) -> str | None:
    """A side is shorter than the model's stride."""
    return _size(facts) if min(facts.width, facts.height) < SMALLEST_SIDE else None


def large_image(facts: Facts) -> str | None:
    """Decoding takes long."""
    return _size(facts) if facts.width * facts.height > LARGEST_PIXELS else None


def extreme_aspect_ratio(facts: Facts) -> str | None:
    """It is a strip."""
    return _size(facts) if max(facts.width, facts.height) > LONGEST * min(facts.width, facts.height) else None


def flat_image(facts: Facts) -> str | None:
    """There is nothing on it."""
    return f"its gray values deviate by {facts.deviation:g} of 255" if facts.deviation < 0.5 else None


def transparent_image(facts: Facts) -> str | None:
    """It has an alpha channel, or a transparent color."""
    return f"mode {facts.mode}" if facts.mode in ("RGBA", "LA", "PA", "La", "RGBa") else None


def cmyk_image(facts: Facts) -> str | None:
    """Its colors are inks."""
    return f"mode {facts.mode}" if facts.mode in ("CMYK", "YCCK") else None


def sixteen_bit_image(facts: Facts) -> str | None:
    """It has more than eight bits a channel."""
    return f"mode {facts.mode}" if facts.bits > 8 else None


def rotated_image(facts: Facts) -> str | None:
    """EXIF says that it is shown turned or flipped."""
    return f"EXIF orientation {facts.orientation}" if facts.orientation in range(2, 9) else None


IMAGE_CHECKS: dict[str, Callable[[Facts], str | None]] = {
    "small_image": small_image,
    "large_image": large_image,
    "extreme_aspect_ratio": extreme_aspect_ratio,
    "flat_image": flat_image,
    "transparent_image": transparent_image,
    "cmyk_image": cmyk_image,
    "sixteen_bit_image": sixteen_bit_image,
    "rotated_image": rotated_image,
}


def check_image(findings: Findings, split: str, path: str, facts: Facts) -> None:
    """Adds what is odd about an image that was read."""
    for name, check in IMAGE_CHECKS.items():
        if (detail := check(facts)) is not None:
            findings.add(name, split, path, detail, is_drawn=True)


def check_modes(findings: Findings, images: Iterable[tuple[str, str, Facts]]) -> None:
    """Adds the images whose channels are not those of most others: of (split, path, facts)."""
    readable = [entry for entry in images if not entry[2].reason]
    are_gray = Counter(_is_gray(facts) for _, _, facts in readable)
    for split, path, facts in readable:
        is_gray = _is_gray(facts)
        if are_gray[is_gray] <= MINORITY * len(readable):
            findings.add(
                "gray_among_color" if is_gray else "color_among_gray", split, path, f"mode {facts.mode}", is_drawn=True
            )


def _is_gray(facts: Facts) -> bool:
    return facts.mode in ("1", "L", "LA", "F") or facts.mode.startswith("I")


def _size(facts: Facts) -> str:
    return f"{facts.width}×{facts.height}"


# ---- videos


def check_video(findings: Findings, split: str, path: str, facts: Facts, clip_frames: int) -> None:
    """Adds what is odd about a video that was read; ``clip_frames`` are those that a clip spans."""
    if facts.frames == 1:
        findings.add("single_frame_video", split, path, is_drawn=True)
    elif facts.frames < clip_frames:
        detail = f"{facts.frames} frames, a clip spans {clip_frames}"
        findings.add("short_video", split, path, detail, is_drawn=True)
    if (flatness := flat_image(facts)) is not None:
        findings.add("flat_image", split, path, flatness, is_drawn=True)
