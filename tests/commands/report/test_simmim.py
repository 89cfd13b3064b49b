"""What a report says of SimMIM: the loss that was logged, losses of images, reconstructions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_tasks.commands.report.run import read_run
from swinv2_tasks.commands.report.simmim import evaluation_sections
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from tests.helpers.reported import block, examples, picture_bytes, rows
from tests.helpers.runs import read_column


@pytest.fixture(scope="module")
def pretrained(trained_run: Callable[[str], Path]) -> Path:
    return trained_run("simmim")


@pytest.fixture
def copied(pretrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt")))


def test_its_numbers_are_those_of_the_files_to_the_last_digit(pretrained: Path) -> None:
    sections = evaluation_sections(read_run(pretrained), "val")
    (loss,) = block(sections, "Scores").numbers
    assert loss.value == read_column(pretrained, "val/loss")[-1]
    losses = {Path(row["file"]).name: float(row["loss"]) for row in read_table(pretrained / "val_images.csv")}
    shown = rows(block(sections, "Images"))
    assert [row["loss"] for row in shown] == sorted(losses.values(), reverse=True)
    lowest = [losses[example.title] for example in block(sections, "Lowest loss").examples]
    assert lowest == sorted(losses.values())[:3]
    assert shown[0]["image"] == block(sections, "Highest loss").examples[0].title


def test_the_last_and_the_first_reconstructions_are_shown(pretrained: Path) -> None:
    sections = evaluation_sections(read_run(pretrained), "val")
    assert [example.title for example in block(sections, "Reconstructions").examples] == ["epoch 0011", "epoch 0005"]
    assert picture_bytes(sections) < 2.5e6 and sections[0].note == ""


def test_what_is_missing_is_said(copied: Path) -> None:
    (copied / "val_images.csv").unlink()
    shutil.rmtree(copied / "visualizations")
    (section,) = evaluation_sections(read_run(copied), "val")
    assert section.note == f"swinv2-tasks validate --ckpt_path {copied} writes the loss of each image as well."
    assert not examples([section])


def test_images_that_are_gone_are_gray_and_tables_that_cannot_be_read_refused(copied: Path) -> None:
    (copied / "visualizations" / "epoch_0005.png").write_bytes(b"no image")
    text = (copied / "val_images.csv").read_text()
    (copied / "val_images.csv").write_text(text.replace("/n0", "/gone/n0"))
    (section,) = evaluation_sections(read_run(copied), "val")
    assert section.note == "7 images cannot be read any more and are shown gray."
    (copied / "val_images.csv").write_text("file,loss\nx,much\n")
    with pytest.raises(UserError, match=r"val_images\.csv"):
        evaluation_sections(read_run(copied), "val")
