"""Images as files have them: modes, orientations, and files that cannot be read."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from swinv2_tasks.datamodules.readers.images import list_images, read_image
from swinv2_tasks.datamodules.readers.label_maps import read_values
from swinv2_tasks.errors import UserError

WIDTH, HEIGHT = 24, 16


def picture() -> Image.Image:
    """A smooth RGB picture without symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 3], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int32)


def difference(path: Path, expected: Image.Image) -> float:
    """Largest difference between the picture read and the one expected."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == expected.size
    return float(np.abs(pixels(image) - pixels(expected.convert("RGB"))).max())


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("L", "png"), ("1", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg")]
)
def test_opaque_modes(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    image = picture().convert(mode)
    image.save(path, quality=100) if ending == "jpg" else image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == ("RGB" if mode == "YCbCr" else mode)
    assert difference(path, image) <= (12 if ending == "jpg" else 0)


def test_palette(tmp_path: Path) -> None:
    image = picture().quantize(64)
    image.save(tmp_path / "image.png")
    assert difference(tmp_path / "image.png", image) == 0


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palette_with_a_transparent_color(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putdata([0, 1])
    image.save(tmp_path / f"image.{ending}", transparency=0)
    assert pixels(read_image(tmp_path / f"image.{ending}")).tolist() == [[[255, 255, 255], [30, 40, 50]]]


def test_palette_with_alpha_per_color(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "image.png", transparency=bytes([255, 128]))
    assert pixels(read_image(tmp_path / "image.png")).tolist() == [[[200, 10, 20], [127, 127, 127]]]


def test_transparent_color_of_an_rgb_file(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    image.save(tmp_path / "image.png", transparency=(1, 2, 3))
    assert pixels(read_image(tmp_path / "image.png")).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate([0, 128, 255]):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    image.convert(mode).save(tmp_path / "image.png")
    assert pixels(read_image(tmp_path / "image.png"))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize(("ending", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
def test_gray_of_16_bits_is_scaled(tmp_path: Path, ending: str, dtype: str) -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=dtype)
    Image.fromarray(ramp).save(tmp_path / f"image.{ending}")
    with Image.open(tmp_path / f"image.{ending}") as saved:
        assert saved.mode.startswith("I")
    assert pixels(read_image(tmp_path / f"image.{ending}"))[0].tolist() == [[v, v, v] for v in (0, 1, 128, 255)]


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif.*known range"):
        read_image(tmp_path / "image.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    # How the camera's sensor stored the picture: the inverse of what a viewer does with it.
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture() if stored is None else picture().transpose(stored)
    image.save(tmp_path / "image.png", exif=exif)
    assert difference(tmp_path / "image.png", picture()) == 0


def test_broken_exif_is_silently_ignored(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    picture().save(tmp_path / "image.jpg", quality=100, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert difference(tmp_path / "image.jpg", picture()) <= 12
    assert not recwarn


def test_real_photographs_of_all_orientations_look_alike(real_data: Path) -> None:
    read = [read_image(real_data / "exif" / f"Landscape_{n}.jpg").resize((60, 40)) for n in (1, 3, 6, 8)]
    for image in read[1:]:
        assert np.abs(pixels(image) - pixels(read[0])).mean() < 6


def noise(path: Path) -> bytes:
    """A JPEG of noise, of which half is far more than the header."""
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path.read_bytes()


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    content = noise(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.jpg.*truncated"):
        read_image(path)


def test_broken_png(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    picture().save(path)
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    with pytest.raises(UserError, match=r"broken\.png"):
        read_image(path)


def zeros_in(path: Path, start: float, length: int) -> None:
    """Overwrites a file with zeros, from a share of its length on."""
    content = bytearray(path.read_bytes())
    first = int(start * len(content))
    content[first : first + length] = bytes(len(content[first : first + length]))
    path.write_bytes(content)


def with_chunk(content: bytes, chunk_type: bytes, data: bytes, checksum: int) -> bytes:
    """A PNG with one more chunk before its end."""
    chunk = len(data).to_bytes(4) + chunk_type + data + checksum.to_bytes(4)
    return content[:-12] + chunk + content[-12:]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_libjpeg_warns_about(mode: str, progressive: bool, tmp_path: Path) -> None:
    path = tmp_path / "hole.jpg"
    values = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path, progressive=progressive)
    assert read_image(path).size == (200, 200)
    zeros_in(path, 0.5, 2000)
    with Image.open(path) as image:
        image.load()  # Pillow says nothing
    with pytest.raises(UserError, match=r"hole\.jpg.*corrupt"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}])
def test_pixels_of_a_jpeg_are_those_of_pillow(mode: str, options: dict, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    picture().resize((123, 77)).convert(mode).save(path, **options)
    with Image.open(path) as image:
        assert np.array_equal(pixels(read_image(path)), pixels(image.convert("RGB")))


def test_pixels_of_photographs_are_those_of_pillow(real_data: Path) -> None:
    paths = sorted((real_data / "imagenet40").rglob("*.JPEG"))
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = pixels(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(pixels(read_image(path)), expected), path


def test_png_whose_pixels_were_altered(tmp_path: Path) -> None:
    path = tmp_path / "tail.png"
    picture().save(path)
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # the checksum of the pixels
    path.write_bytes(content)
    with Image.open(path) as image:
        image.load()  # Pillow says nothing
    with pytest.raises(UserError, match=r"tail\.png.*checksum of its part 'IDAT' fails"):
        read_image(path)


def test_png_whose_last_part_is_missing_or_altered(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture().save(path)
    whole = path.read_bytes()
    text = b"Comment\0mine"
    path.write_bytes(with_chunk(whole, b"tEXt", text, zlib.crc32(b"tEXt" + text)))
    assert difference(path, picture()) == 0
    path.write_bytes(with_chunk(whole, b"tEXt", text, 1))
    with pytest.raises(UserError, match=r"checksum of its part 'tEXt' fails"):
        read_image(path)
    for length in (1, 12, 13):
        path.write_bytes(whole[:-length])
        with pytest.raises(UserError, match=r"image\.png.*(truncated|checksum)"):
            read_image(path)
    path.write_bytes(whole + b"what follows is no part of the image")
    assert difference(path, picture()) == 0


def test_no_program_is_started_for_a_file_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    eps = tmp_path / "eps.jpg"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_image, read_values):
        with pytest.raises(UserError, match=r"eps\.jpg.*not an image of any known format"):
            read(eps)
    assert not (tmp_path / "started").exists()


def test_names_of_all_kinds_make_one_line_of_a_message(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[2J[red].jpg")
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="empty") as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert message.isprintable()
    assert r"caf\xe9\n\x1b[2J[red].jpg" in message
    message.encode()


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "none.jpg").touch()
    with pytest.raises(UserError, match=r"none\.jpg.*empty \(0 bytes\)"):
        read_image(tmp_path / "none.jpg")


def test_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"text\.jpg.*not an image"):
        read_image(tmp_path / "text.jpg")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jpg.*does not exist"):
        read_image(tmp_path / "gone.jpg")


def test_folder_with_the_name_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=r"folder\.jpg.*is a folder"):
        read_image(tmp_path / "folder.jpg")


def test_decompression_bomb(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # 400 million pixels in 50 kB
    with pytest.raises(
        UserError, match=r"bomb\.png.*400,000,000 pixels, more than the 134,217,728 that are allowed.*--max_pixels"
    ):
        read_image(tmp_path / "bomb.png")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ["img10.png", "img2.PNG", "sub/img1.jpg", "a[1].png", ".hidden.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_list_a_folder_in_natural_order(album: Path) -> None:
    names = [path.relative_to(album).as_posix() for path in list_images(album)]
    assert names == ["a[1].png", "img2.PNG", "img10.png", "sub/img1.jpg"]


def test_list_a_pattern(album: Path) -> None:
    assert [path.name for path in list_images(f"{album}/img*")] == ["img2.PNG", "img10.png"]
    assert [path.name for path in list_images(f"{album}/**/*.jpg")] == ["img1.jpg"]


def test_list_one_file_even_if_its_name_looks_like_a_pattern(album: Path) -> None:
    assert list_images(album / "a[1].png") == [album / "a[1].png"]


def test_list_nothing(album: Path) -> None:
    with pytest.raises(UserError, match=r"gone.*does not exist"):
        list_images(album / "gone")
    with pytest.raises(UserError, match=r"folder\.png holds no image"):
        list_images(album / "folder.png")
    with pytest.raises(UserError, match=r"matches no image"):
        list_images(f"{album}/*.txt")


# ---- links


def test_links_to_where_they_lie_do_not_multiply_images(album: Path) -> None:
    for name in ("one", "two"):
        (album / "sub" / name).symlink_to(album / "sub")
    (album / "up").symlink_to(album.parent)
    (album / "self").symlink_to(".")
    expected = ["a[1].png", "img2.PNG", "img10.png", "sub/img1.jpg"]
    assert [path.relative_to(album).as_posix() for path in list_images(album)] == expected
    assert [path.name for path in list_images(f"{album}/**/*.jpg")] == ["img1.jpg"]
    assert [path.relative_to(album).as_posix() for path in list_images(f"{album}/**")] == expected


def test_folders_that_link_to_each_other_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"f{k:02d}" for k in range(15)]
    for name in names:
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "image.png")
    for name in names:
        for other in names:
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    paths = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert paths == [f"{name}/image.png" for name in names]
    assert "225 links lead to folders that are searched anyway" in caplog.text


def test_linked_folders_and_files_are_found(album: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("links")
    (source / "folder").symlink_to(album / "sub")
    (source / "file.png").symlink_to(album / "img10.png")
    (source / "gone.png").symlink_to(album / "nowhere.png")
    os.mkfifo(source / "pipe.png")
    expected = [source / "file.png", source / "folder" / "img1.jpg", source / "gone.png"]
    assert list_images(source) == expected
    assert list_images(f"{source}/**/*") == expected
    with pytest.raises(UserError, match=r"gone\.png.*does not exist"):
        read_image(source / "gone.png")


def test_hidden_folders_are_not_searched(album: Path) -> None:
    (album / ".cache").mkdir()
    picture().save(album / ".cache" / "img3.png")
    assert len(list_images(album)) == 4
    assert [path.name for path in list_images(album / ".cache")] == ["img3.png"]


def test_patterns_with_two_depths(album: Path) -> None:
    (album / "sub" / "deep" / "end").mkdir(parents=True)
    picture().save(album / "sub" / "deep" / "end" / "img5.png")
    assert [path.name for path in list_images(f"{album}/**/deep/**/*.png")] == ["img5.png"]
    assert [path.name for path in list_images(f"{album}/s*/**/*.png")] == ["img5.png"]
