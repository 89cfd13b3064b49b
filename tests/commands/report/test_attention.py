"""Where the model looks, and its position bias: of the checkpoint and the files that an evaluation was of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_tasks.backbone import BiasTable, LogCPB, SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.report.attention import attention_section, overlay
from swinv2_tasks.commands.report.bias import IN_A_ROW, bias_maps, side_by_side
from swinv2_tasks.commands.report.pictures import gray_picture
from swinv2_tasks.commands.report.run import read_run
from swinv2_tasks.commands.report.trained_model import load_model
from swinv2_tasks.evaluation.predictions import read_single_label
from tests.helpers import tiny
from tests.helpers.checkpoints import randomize, write_randomized
from tests.helpers.reported import examples, picture_bytes
from tests.helpers.runs import evaluate, from_last, user_error


def test_mistakes_have_the_maps_of_both_classes_and_right_ones_that_of_one(trained: Path, tmp_path: Path) -> None:
    poor = write_randomized(tmp_path / "poor.ckpt", trained, tiny.new_task())
    run = read_run(evaluate(tmp_path, f"--ckpt_path={poor}"))
    section = attention_section(run, "val", load_model(run))
    results = read_single_label(run.folder / "val_predictions.csv", [*tiny.COLORS])
    of_names = {Path(path).name: k for k, path in enumerate(results.paths)}
    shown = examples([section])
    wrong = [example for example in shown if example.frame == "wrong"]
    assert wrong and len(shown) <= 12 and picture_bytes([section]) < 2.5e6
    names = [*tiny.NAMES.values()]
    for example in shown:
        k = of_names[example.title]
        assert (example.frame == "wrong") == (not results.is_right[k])
        assert len(example.pictures) == (3 if example.frame == "wrong" else 2)
        label, predicted = names[results.labels[k]], names[results.predicted[k]]
        score, own = results.scores[k, 0], results.label_scores[k]
        if example.frame == "wrong":  # the model's own probabilities are those of its evaluation
            assert [*example.lines] == [f"labeled {label} {own:.1%}", f"predicted {predicted} {score:.1%}"]
        else:
            assert [*example.lines] == [f"labeled and predicted {label} {score:.1%}"]
    order = [results.scores[of_names[example.title], 0] for example in wrong]
    assert order == sorted(order, reverse=True)
    assert order[0] == results.scores[~results.is_right, 0].max()


def test_files_that_are_gone_are_gray_and_counted(trained: Path, images: Path, tmp_path: Path) -> None:
    data = shutil.copytree(images, tmp_path / "data")
    run = read_run(evaluate(tmp_path, from_last(trained), f"--data.root={data}"))
    shutil.rmtree(data / "val" / "n01")
    section = attention_section(run, "val", load_model(run))
    assert len(section.blocks) == 1 and "1 image cannot be read" in section.note
    gone = [example for example in examples([section]) if example.title.startswith("n01")]
    assert len(gone) == 1 and len(gone[0].pictures) == 1


@pytest.mark.parametrize(
    "name", ["segmentation", *(pytest.param(name, marks=pytest.mark.slow) for name in ("video", "mask_rcnn", "simmim"))]
)
def test_the_command_adds_both_sections(name: str, trained_run: Callable[[str], Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    folder = trained_run(name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["report", str(folder), f"--output={page}", "--attention=true", "--bias=true"]) == 0
    text = page.read_text("utf-8")
    assert "Where the model looks" in text and "Position bias" in text and "trained and present window" in text
    assert ("Grad-CAM (https" in text) == (name in ("segmentation", "video"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert main(["report", str(folder), f"--output={page}"]) == 0
    assert "Position bias" not in page.read_text("utf-8")


def test_another_window_is_shown_beside_the_trained_one(trained: Path, tmp_path: Path) -> None:
    run = evaluate(tmp_path, from_last(trained), "--model.backbone.window_size=8")
    page = tmp_path / "page.html"
    assert main(["report", str(run), f"--output={page}", "--bias=true"]) == 0
    titles = re.findall(r"<h3>(Stage[^<]*)</h3>", page.read_text("utf-8"))
    assert titles == [
        "Stage 1, block 1: trained window 4×4",
        "Stage 1, block 1: present window 8×8",
        "Stage 2, block 1: trained and present window 4×4",  # whose map has no more tokens
    ]


@pytest.mark.parametrize("position_bias", [LogCPB, BiasTable])
@pytest.mark.parametrize("axes", [2, 3])
def test_what_is_drawn_is_what_attention_adds(axes: int, position_bias: type[torch.nn.Module]) -> None:
    window = [2, 3, 4][-axes:]
    backbone = SwinTransformerV2(
        16, [3, 1], [2, 4], [window] * 2, patch_size=[2, 4, 4][-axes:], position_bias=position_bias
    )
    randomize(backbone)
    if position_bias is LogCPB:
        backbone.set_pretrained_window([[2, 2, 2][-axes:]] * 2)
    maps = [*bias_maps(backbone)]
    assert {(each.stage, each.block) for each in maps} == {(1, 1), (1, 3), (2, 1)}
    for each in maps:
        assert each.is_present == (each.window == tuple(window))
        stage: Any = backbone.stages[each.stage - 1]
        trained = stage.pretrained_window_size or each.window
        with torch.no_grad():
            bias = stage.blocks[each.block - 1].attn.cpb_mlp(each.window, trained).numpy()
        sides = each.window[-2:]
        tokens = [*np.ndindex(*each.window)]
        seen = np.zeros(each.values.shape[1:], bool)
        for i, query in enumerate(tokens):
            for j, key in enumerate(tokens):
                offset = np.subtract(query, key)
                if axes == 3 and offset[0]:
                    continue
                place = tuple(offset[-2:] + np.array(sides) - 1)
                assert np.array_equal(each.values[:, *place], bias[:, i, j])
                seen[place] = True
        assert seen.all()


def test_each_head_is_drawn_once() -> None:
    values = np.random.default_rng(0).normal(size=(IN_A_ROW + 3, 3, 5)).astype(np.float32)
    sheet = side_by_side(values)
    assert sheet.shape == (7, IN_A_ROW * 6 - 1)
    assert np.array_equal(sheet[:3, :5], values[0])
    assert np.array_equal(sheet[4:, 12:17], values[IN_A_ROW + 2])
    assert np.array_equal(np.sort(sheet[~np.isnan(sheet)]), np.sort(values.ravel()))


def test_an_overlay_is_gray_where_nothing_speaks_for_the_class_and_bright_where_most_does() -> None:
    picture = gray_picture(8)
    places = torch.zeros(picture.height, picture.width)
    places[0, 0] = 3.0
    shown = np.asarray(overlay(picture, places))
    assert np.array_equal(shown[1:], np.asarray(picture)[1:])
    assert not np.array_equal(shown[0, 0], np.asarray(picture)[0, 0])


def test_a_checkpoint_that_is_gone_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    run = evaluate(tmp_path, f"--ckpt_path={checkpoint}")
    Path(checkpoint).unlink()
    message = user_error(capsys, "report", str(run), "--bias=true")
    assert "mine.ckpt" in message and "is gone" in message
