"""Images of n channels: their values are those of NumPy and tifffile, and hostile files have a bounded price."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from swinv2_tasks.datamodules.readers.array_images import array_size, read_array
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.image_sizes import image_size
from swinv2_tasks.datamodules.readers.images import MAX_PIXELS, list_images
from swinv2_tasks.errors import UserError


def draw(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(20, 30, 5), (5, 20, 30)])
def test_npy_is_scaled_by_its_type(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    stored = draw(*shape, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    values = ImageReader(5).pixels(tmp_path / "a.npy")

    most = {"uint8": 255, "uint16": 65535, ">u2": 65535}.get(dtype, 1)
    expected = stored.astype(np.float32) / np.float32(most)
    np.testing.assert_array_equal(values, expected if shape[2] == 5 else expected.transpose(1, 2, 0))
    assert values.dtype == np.float32 and values.flags["C_CONTIGUOUS"]
    assert image_size(tmp_path / "a.npy", ImageReader(5)) == (20, 30)


def test_fortran_order_two_axes_and_bytes_in_memory(tmp_path: Path) -> None:
    stored = draw(12, 7)
    np.save(tmp_path / "a.npy", np.asfortranarray(stored))
    content = (tmp_path / "a.npy").read_bytes()
    for given in (None, content):
        np.testing.assert_array_equal(read_array(tmp_path / "a.npy", 1, given)[..., 0], stored)
    assert ImageReader(1).image(tmp_path / "a.npy").shape == (1, 12, 7)
    assert list_images(tmp_path) == [tmp_path / "a.npy"]


WAYS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("interleaved", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack"}),
    ("planar", (5, 40, 50), {"planarconfig": "separate", "photometric": "minisblack"}),
    ("pages", (5, 40, 50), {"photometric": "minisblack"}),
    ("deflate", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack", "compression": "deflate"}),
    ("big-endian", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack", "byteorder": ">"}),
    ("bigtiff", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack", "bigtiff": True}),
    ("strips", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack", "rowsperstrip": 7}),
    ("blocks", (5, 40, 50), {"planarconfig": "separate", "photometric": "minisblack", "tile": (16, 32)}),
    ("predictor", (40, 50, 5), {"planarconfig": "contig", "photometric": "minisblack", "compression": "deflate",
                                "predictor": 2, "tile": (16, 16)}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "settings"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_is_what_tifffile_wrote(tmp_path: Path, shape: Any, settings: dict[str, Any], dtype: Any) -> None:
    if dtype == np.float32 and "predictor" in settings:
        settings = {**settings, "predictor": None}
    stored = draw(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, **settings)
    expected = stored if shape[2] == 5 else stored.transpose(1, 2, 0)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", 5), expected)
    assert array_size(tmp_path / "a.tif", 5) == (40, 50)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_gray_of_16_bits_keeps_them(tmp_path: Path, ending: str) -> None:
    stored = draw(20, 30)
    Image.fromarray(stored).save(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(ImageReader(1).pixels(tmp_path / f"a.{ending}")[..., 0], stored / np.float32(65535))


def test_overviews_are_no_channels_and_white_may_be_0(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(draw(40, 50), photometric="miniswhite")
        file.write(draw(20, 25), photometric="miniswhite", subfiletype=1)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", 1)[..., 0], 65535 - draw(40, 50))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    stored = draw(6, 9, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=[(274, "H", 1, orientation, True)])
    shown = Image.fromarray(stored)
    shown.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(shown))[..., None]
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", 1), expected)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", 1, exif_rotation=False)[..., 0], stored)
    assert array_size(tmp_path / "a.tif", 1) == expected.shape[:2]


def test_ranges_scale_and_do_not_clip(tmp_path: Path) -> None:
    stored = draw(8, 9, 4)
    np.save(tmp_path / "a.npy", stored)
    values = ImageReader(4, (100, 10100)).pixels(tmp_path / "a.npy")
    np.testing.assert_allclose(values, (stored.astype(np.float64) - 100) / 10000, rtol=1e-6, atol=1e-7)
    assert values.max() > 1


def test_rgb_of_numpy_becomes_8_bits(tmp_path: Path) -> None:
    stored = draw(8, 9, 3, dtype=np.uint8)
    np.save(tmp_path / "a.npy", stored)
    np.testing.assert_array_equal(RGB_READER.pixels(tmp_path / "a.npy"), stored)
    np.save(tmp_path / "b.npy", stored.astype(np.float32))
    with pytest.raises(UserError, match=r"data\.value_range"):
        RGB_READER.pixels(tmp_path / "b.npy")
    np.testing.assert_array_equal(ImageReader(3, (0, 255)).pixels(tmp_path / "b.npy"), stored)


def test_pictures_show_the_first_channels_stretched(tmp_path: Path) -> None:
    stored = np.linspace(1000, 2000, 40 * 50 * 5).reshape(40, 50, 5).astype(np.uint16)
    np.save(tmp_path / "a.npy", stored)
    shown = np.asarray(ImageReader(5).picture(tmp_path / "a.npy"))
    assert shown.shape == (40, 50, 3) and shown.min() == 0 and shown.max() == 255
    np.save(tmp_path / "b.npy", stored[..., :1])
    gray = np.asarray(ImageReader(1).picture(tmp_path / "b.npy"))
    assert (gray[..., 0] == gray[..., 2]).all() and gray.max() == 255


# ---- refused


def refusal(path: Path, channels: int = 5, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        ImageReader(channels, **settings).image(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", draw(8, 9, 4))
    tifffile.imwrite(tmp_path / "a.tif", draw(8, 9, 4), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "b.tif", draw(7, 8, 9), photometric="minisblack")
    Image.fromarray(draw(8, 9, 3, dtype=np.uint8)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.tif", "b.tif", "a.png"):
        assert "data.channels is 5" in refusal(tmp_path / name)
    np.save(tmp_path / "b.npy", draw(5, 9, 5))
    assert "first or the last" in refusal(tmp_path / "b.npy")


@pytest.mark.parametrize("stored", [draw(8, 9, 5).astype(np.int32), draw(8, 9, 5).astype(np.uint32)])
def test_types_without_a_range_are_refused(tmp_path: Path, stored: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", stored)
    assert "data.value_range" in refusal(tmp_path / "a.npy")
    assert ImageReader(5, (0, 65535)).pixels(tmp_path / "a.npy").max() <= 1


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    stored = np.zeros((8, 9, 5), np.float32)
    stored[3, 4, 2] = np.nan
    np.save(tmp_path / "a.npy", stored)
    assert "finite" in refusal(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((8, 9, 5), np.complex64))
    assert "complex64" in refusal(tmp_path / "b.npy")


class Exploit:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('the pickle was run')",)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[Exploit()]], dtype=object), allow_pickle=True)
    assert "Python objects" in refusal(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Exploit()))
    assert "not an image" in refusal(tmp_path / "b.npy")


def npy_header(shape: str, descr: str = "'<u2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_npy_headers_that_lie_have_a_bounded_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header("(1000000, 1000000, 5)"))
    assert "1,000,000,000,000 pixels" in refusal(path)
    path.write_bytes(npy_header("(10000, 10000, 5)"))
    assert "more than" in refusal(path)  # pixels enough, but too many channels of them
    path.write_bytes(npy_header("(100, 100, 5)") + bytes(99))
    assert "truncated" in refusal(path)
    for text in ("(-5, 10, 5)", "(0, 10, 5)", "__import__('os')", "(1,)", "(True, 4, 5)"):
        path.write_bytes(npy_header(text))
        refusal(path)
    np.save(path, draw(20, 30, 5))
    monkeypatch.setenv(MAX_PIXELS, "599")
    assert "--max_pixels" in refusal(path)


def test_truncated_and_lying_tiffs_are_refused(tmp_path: Path) -> None:
    whole = io.BytesIO()
    tifffile.imwrite(whole, draw(40, 50, 5), photometric="minisblack", planarconfig="contig")
    content = whole.getvalue()
    path = tmp_path / "a.tif"
    for end in (3, 8, 60, 300, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        refusal(path)

    enlarged = content.replace(struct.pack("<HHII", 256, 4, 1, 50), struct.pack("<HHII", 256, 4, 1, 2**31))
    assert enlarged != content or b"\x00\x01" in content
    path.write_bytes(enlarged)
    if enlarged != content:
        assert "pixels" in refusal(path)


def test_deflate_that_inflates_to_more_than_its_values_is_refused(tmp_path: Path) -> None:
    """A strip of a megabyte that would become a gigabyte."""
    bomb = zlib.compress(bytes(2**28), 9)
    stored = io.BytesIO()
    tifffile.imwrite(
        stored, iter([bomb]), shape=(400, 400, 5), dtype=np.uint16, photometric="minisblack", planarconfig="contig",
        compression="deflate", rowsperstrip=400,
    )  # fmt: skip
    path = tmp_path / "a.tif"
    path.write_bytes(stored.getvalue())
    assert "inflates" in refusal(path)


def test_unknown_compression_says_what_to_do(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", draw(40, 50, 5), photometric="minisblack", planarconfig="contig")
    content = (tmp_path / "a.tif").read_bytes()
    known, unknown = (struct.pack("<HHIH", 259, 3, 1, number) for number in (1, 5))
    assert known in content
    (tmp_path / "a.tif").write_bytes(content.replace(known, unknown))
    assert "LZW" in refusal(tmp_path / "a.tif")
