from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules.images import list_images, read_image
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
def test_palette_with_a_transparent_colour(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putdata([0, 1])
    image.save(tmp_path / f"image.{ending}", transparency=0)
    assert pixels(read_image(tmp_path / f"image.{ending}")).tolist() == [[[255, 255, 255], [30, 40, 50]]]


def test_palette_with_alpha_per_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "image.png", transparency=bytes([255, 128]))
    assert pixels(read_image(tmp_path / "image.png")).tolist() == [[[200, 10, 20], [127, 127, 127]]]


def test_transparent_colour_of_an_rgb_file(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"bomb\.png.*decompression bomb"):
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
