"""Label maps: class numbers in, class numbers out, whatever the file's colors and bits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values, write_values
from swinv2_tasks.errors import UserError

LABELS = np.array([[0, 1, 2, 3], [3, 3, 0, 1]], dtype=np.uint8)


def write_gray(path: Path, labels: np.ndarray, bits: int) -> None:
    """A grayscale PNG of some bits per pixel, chunk by chunk: Pillow writes none below 8 but those of 1."""

    def chunk(chunk_type: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + chunk_type + content + struct.pack(">I", zlib.crc32(chunk_type + content))
        )

    height, width = labels.shape
    rows = b""
    for row in labels:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grayscale_of_any_bits_holds_class_numbers(bits: int, tmp_path: Path) -> None:
    write_gray(tmp_path / "mask.png", LABELS, bits)
    values = read_values(tmp_path / "mask.png")
    assert values.dtype == np.uint8 and (values == LABELS).all()


def test_one_bit_holds_two_classes(tmp_path: Path) -> None:
    write_gray(tmp_path / "mask.png", LABELS % 2, 1)
    assert (read_values(tmp_path / "mask.png") == LABELS % 2).all()


def test_colors_of_any_mode_are_red_green_and_blue(tmp_path: Path) -> None:
    colors = np.array([(0, 0, 0), (255, 1, 2), (7, 255, 9), (3, 4, 255)], dtype=np.uint8)
    expected = np.array([0, 0xFF0102, 0x07FF09, 0x0304FF])[LABELS]
    for mode in ("RGB", "RGBA", "P"):
        Image.fromarray(colors[LABELS]).convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "mask.png")
        with Image.open(tmp_path / "mask.png") as image:
            assert image.mode == mode
        assert (read_colors(tmp_path / "mask.png") == expected).all()
    Image.fromarray(LABELS * 80).save(tmp_path / "mask.png")
    assert (read_colors(tmp_path / "mask.png") == LABELS.astype(int) * 80 * 0x010101).all()


def test_colors_that_can_be_seen_through_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="transparent"):
        read_colors(tmp_path / "mask.png")


def test_a_palettes_colors_do_not_matter(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette([200, 100, 50, 0, 0, 0, 255, 255, 255, 9, 9, 9])
    image.save(tmp_path / "mask.png")
    assert (read_values(tmp_path / "mask.png") == LABELS).all()


def test_what_is_written_is_read_and_looks_as_it_should(tmp_path: Path) -> None:
    colors = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255)}
    write_values(tmp_path / "mask.png", LABELS, colors)
    assert (read_values(tmp_path / "mask.png") == LABELS).all()
    with Image.open(tmp_path / "mask.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == np.array([(0, 0, 0), *colors.values()])[LABELS]).all()


def broken(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 4, (60, 60)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])


MISTAKES = {
    "missing": (lambda path: None, "no label map"),
    "a text": (lambda path: path.write_text("no image"), "Cannot read"),
    "truncated": (broken, "Cannot read"),
    "colors": (lambda path: Image.new("RGB", (4, 4)).save(path), "colors"),
    "transparency": (lambda path: Image.new("RGBA", (4, 4)).save(path), "colors"),
    "16 bits": (lambda path: Image.fromarray(LABELS.astype(np.uint16)).save(path), "8-bit"),
    "a photograph's format": (lambda path: Image.fromarray(LABELS).save(path, format="JPEG"), "JPEG"),
}


@pytest.mark.parametrize(("write", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_no_label_map_is_reported_with_its_file(write: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=words) as error:
        read_values(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_label_map_whose_checksum_fails_is_refused(tmp_path: Path) -> None:
    write_values(tmp_path / "mask.png", np.full((200, 200), 2, np.uint8), {1: (1, 2, 3), 2: (4, 5, 6)})
    content = bytearray((tmp_path / "mask.png").read_bytes())
    content[-13] ^= 1
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(UserError, match=r"mask\.png.*checksum of its part 'IDAT' fails"):
        read_values(tmp_path / "mask.png")


def test_an_empty_label_map_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mask.png").touch()
    with pytest.raises(UserError, match=r"mask\.png.*empty"):
        read_values(tmp_path / "mask.png")
