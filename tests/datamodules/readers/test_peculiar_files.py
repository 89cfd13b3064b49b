"""Files that a folder holds beside plain images: rotated, of several pages, HEIC, too large, or no images at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ImageNetDataModule, KineticsDataModule, SimMIMDataModule
from swinv2_tasks.datamodules.readers.images import MAX_PIXELS, list_images, read_image
from swinv2_tasks.datamodules.readers.label_maps import read_values
from swinv2_tasks.errors import UserError
from tests.helpers.films import write_film
from tests.helpers.tiny import new_data, write_config, write_images

HEIC = b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic"
"""How a file of an iPhone begins."""


def picture(shade: int = 0) -> Image.Image:
    pixels = np.random.default_rng(shade).integers(0, 255, (36, 40, 3), np.uint8)
    return Image.fromarray(pixels)


def write_pages(path: Path, **options: Any) -> None:
    """Writes two pictures into a file."""
    picture(0).save(path, save_all=True, append_images=[picture(1)], **options)


def write_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, exif=exif)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said about files so far."""
    caplog.set_level(logging.WARNING, "swinv2_tasks")
    return lambda: [record.getMessage() for record in caplog.records]


# ---- counted as they are read


@pytest.mark.parametrize("workers", [0, 2])
def test_rotated_files_and_those_of_several_pages_are_counted_once(
    workers: int, tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("book.tiff", "film.gif", "film.png", "film.webp", "stereo.mpo.jpg"):
        write_pages(folder / name, **({"format": "MPO"} if "mpo" in name else {}))
    for name in ("phone.jpg", "phone.png"):
        write_rotated(folder / name)
    for number in range(5):
        picture(number).save(folder / f"plain_{number}.jpg")
    picture().save(folder / "page.tiff")
    picture().save(folder / "still.gif")
    data = SimMIMDataModule(str(folder), image_size=32, mask_patch_size=8, batch_size=4, num_workers=workers)
    data.val_dataset = data._masked(list_images(folder), data._eval_transform)
    loader = data.val_dataloader()
    for _ in range(2):
        assert sum(len(batch["image"]) for batch in loader) == 14
    data.teardown("fit")
    assert sorted(lines()) == [
        f"2 files are rotated as their EXIF orientation says, as {folder / 'phone.jpg'}",
        f"5 files hold several pictures (pages or frames), of which the first is read, as {folder / 'book.tiff'}",
    ]


def test_what_is_read_of_several_pages_is_the_first(tmp_path: Path) -> None:
    for name in ("book.tiff", "film.png"):
        write_pages(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), np.asarray(picture(0)))


def test_broken_pages_behind_the_first_are_no_matter(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    write_pages(tmp_path / "film.gif")
    whole = read_image(tmp_path / "film.gif")
    content = (tmp_path / "film.gif").read_bytes()
    (tmp_path / "film.gif").write_bytes(content[: len(content) * 3 // 5])
    assert np.array_equal(np.asarray(read_image(tmp_path / "film.gif")), np.asarray(whole))


def test_an_iteration_that_stops_early_is_told_about_at_the_end(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    root = write_images(tmp_path / "images")
    for path in (root / "val").rglob("*.jpg"):
        write_rotated(path)
    data = new_data(root, batch_size=3)
    data.setup("validate")
    next(iter(data.val_dataloader()))
    assert lines() == []
    data.teardown("validate")
    assert [line.partition(",")[0] for line in lines()] == ["3 files are rotated as their EXIF orientation says"]


# ---- HEIC


def test_heic_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "photo.HEIC").write_bytes(HEIC)
    (tmp_path / "photo.jpg").write_bytes(HEIC)
    for name in ("photo.HEIC", "photo.jpg"):
        with pytest.raises(UserError, match=rf"{name}: HEIC is not read: convert .*pip install pillow-heif"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match=r"label map .*photo.jpg: HEIC is not read"):
        read_values(tmp_path / "photo.jpg")


def test_a_folder_of_heic_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "photo.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"holds no image, but 1 file that is no image \(1 × \.heic\).*pillow-heif"):
        list_images(tmp_path)

    root = write_images(tmp_path / "images")
    for path in (root / "train" / "n01").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"No images in these class folders.*n01, but 6 files.*pillow-heif"):
        ImageNetDataModule(str(root)).setup("fit")


# ---- files of other kinds


def test_other_files_are_counted_in_one_line(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture().save(tmp_path / name)
    for name in ("c.heic", "d.heif", "notes.txt", "Makefile", ".hidden", "._a.jpg"):
        (tmp_path / name).write_bytes(HEIC)
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.jpg"]
    (line,) = lines()
    assert line.startswith(f"{tmp_path}: left out: 4 files that are no image (1 × ")
    assert "1 × no ending" in line and "1 × .heic" in line and "pip install pillow-heif" in line


def test_class_folders_have_one_line_together(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    root = write_images(tmp_path / "images")
    for name in ("n01", "n02"):
        (root / "train" / name / "Thumbs.db").touch()
    new_data(root).setup("fit")
    assert lines() == [f"{root / 'train'}: left out: 2 files that are no image (2 × .db)"]


def test_class_folders_of_videos_as_well(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    write_film(tmp_path / "val" / "zumba" / "good.mp4")
    (tmp_path / "val" / "zumba" / "notes.txt").touch()
    KineticsDataModule(str(tmp_path)).videos("val")
    assert lines() == [f"{tmp_path / 'val'}: left out: 1 file that is no video (1 × .txt)"]
    (tmp_path / "val" / "zumba" / "good.mp4").unlink()
    with pytest.raises(UserError, match=r"no video in the class folders of .*, but 1 file that is no video"):
        KineticsDataModule(str(tmp_path)).videos("val")


# ---- files of many pixels


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    Image.new("1", (15_000, 12_000)).save(path)  # 180 million pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # as it was, afterwards
    for read in (read_image, read_values):
        with pytest.raises(UserError, match=rf"map\.png: .*180,000,000 pixels.*--max_pixels \(or {MAX_PIXELS}\)"):
            read(path)
    monkeypatch.setenv(MAX_PIXELS, "180000000")
    assert read_values(path).shape == (12_000, 15_000)
    monkeypatch.setenv(MAX_PIXELS, "100")
    write_rotated(tmp_path / "small.jpg")
    with pytest.raises(UserError, match=r"small\.jpg: .*1,440 pixels, more than the 100"):
        read_image(tmp_path / "small.jpg")
    monkeypatch.setenv(MAX_PIXELS, "many")
    with pytest.raises(UserError, match=f"{MAX_PIXELS} is 'many'; expected a number"):
        read_image(path)


@pytest.mark.slow
def test_the_command_line_sets_the_limit_for_workers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", write_images(tmp_path / "images"))
    monkeypatch.setenv(MAX_PIXELS, "1000000")
    arguments = ["validate", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--data.num_workers=1"]
    assert main([*arguments, "--max_pixels=1000"]) == 1
    assert "1,440 pixels" in capsys.readouterr().err
    assert main([*arguments, "--max_pixels=2000"]) == 0
    assert main([*arguments, "--max_pixels=0"]) == 1
    assert "max_pixels is 0" in capsys.readouterr().err
