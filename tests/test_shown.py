"""What files say is shown, never interpreted: the package goes one way, commands are given names that do something."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

import swinv2_tasks
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from swinv2_tasks.text import printable
from tests.helpers import objects, tiny
from tests.helpers.films import write_film
from tests.helpers.names import FORMULA_SIGNS, NAMES, effects, is_valid
from tests.helpers.processes import run_in_terminal

# ---- one way

ELSEWHERE = {
    "print": ("text.py", "callbacks/console.py"),  # the latter hands on what LightningModule.print is given
    "csv.writer": ("tables.py", "cli/configs.py", "sample_data/writer.py"),  # lists in formats that others read
    "csv.DictWriter": ("training/run_loggers.py",),  # metrics.csv, which is Lightning's
    "rich.console": ("tables.py",),
    "rich.table": ("tables.py",),
    "rich.text": ("tables.py",),
    ".savefig": ("callbacks/figures.py",),
}
"""What writes without asking what it writes, and the only files that use it."""


def uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module names that ``ELSEWHERE`` might list, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}", node.lineno
            if isinstance(node.value, ast.Name):
                yield f"{node.value.id}.{node.attr}", node.lineno
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((name, node.lineno) for name in names)


def find_other_ways(path: str, text: str) -> list[str]:
    return [
        f"{path}:{line} uses {name}"
        for name, line in uses(ast.parse(text))
        if name in ELSEWHERE and path not in ELSEWHERE[name]
    ]


def test_all_of_the_package_prints_and_writes_tables_the_same_way() -> None:
    root = Path(str(swinv2_tasks.__file__)).parent
    files = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert [fault for path, text in sorted(files.items()) for fault in find_other_ways(path, text)] == []


@pytest.mark.parametrize(
    "line",
    ["print(name)", "rank_zero_only(print)(name)", "import csv; csv.writer(file)", "figure.savefig(path)",
     "from rich.table import Table", "import rich.console"],
)  # fmt: skip
def test_another_way_is_found(line: str) -> None:
    assert len(find_other_ways("commands/score.py", f"import os\n{line}")) == 1


# ---- every command, in a terminal

FILES = [name for name in NAMES if "/" not in name]
"""Names that files and folders may have."""

CLASSES = [name for name in FILES if not re.search("[\ud800-\udfff]", name)]
"""Names that classes may have, which configs state."""


def shown_in(output: str, names: list[str]) -> list[str]:
    """Which of some names can be read in an output; those that do anything there fail the test."""
    assert effects(output) == []
    return [name for name in names if printable(name) in output]


def assert_read(path: Path) -> None:
    """A file that people open is text in UTF-8 that does nothing, and no cell of a table is a formula."""
    text = path.read_bytes().decode()
    assert all(map(is_valid, text)), path
    if path.suffix == ".csv":
        for cell in [cell for row in csv.reader(text.splitlines()) for cell in row]:
            assert cell[:1] not in (*FORMULA_SIGNS,) or re.fullmatch(r"-[\d.e+-]+|-inf", cell), (path, cell)
    if path.suffix == ".json":
        json.loads(text)


def assert_all_read(folder: Path) -> None:
    written = [
        path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".jsonl", ".yaml", ".txt", ".html")
    ]
    assert written
    for path in written:
        assert_read(path)


def write_image(path: Path, color: tuple[int, int, int] = (200, 40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), color).save(path, "JPEG")


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier whose classes are folders of such names, beside its data."""
    folder = tmp_path_factory.mktemp("classified")
    for k, name in enumerate(CLASSES):
        for split in ("train", "val"):
            write_image(folder / "data" / split / name / f"{name}.jpg", (10 * k, 100, 100))
            write_image(folder / "data" / split / name / os.fsdecode(b"caf\xe9.jpg"), (10 * k, 100, 100))
    config = tiny.config(folder / "data", name="a\x1b]0;owned\x07$(x) b", trainer={"max_epochs": 1})
    config["data"]["init_args"] |= {"class_names": None, "batch_size": len(FILES)}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = run_in_terminal(["fit", "--config=tiny.yaml", "--trainer.enable_progress_bar=true"], folder)
    assert done.status == 0, done.output
    assert shown_in(done.output, FILES)
    assert "--ckpt_path 'runs/a\\x1b]0;owned\\x07$(x) b/0'" in done.output
    assert_all_read(folder / "runs")
    return folder


def checkpoint(folder: Path) -> str:
    (path,) = folder.glob("runs/*/0/checkpoints/last.ckpt")
    return str(path)


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "--ckpt_path=CKPT"],
        ["predict", "--ckpt_path=CKPT", "--data.source=data/val"],
        pytest.param(["test", "--ckpt_path=CKPT"], marks=pytest.mark.slow),
        pytest.param(["weights", "inspect", "CKPT"], marks=pytest.mark.slow),
        pytest.param(["memory", "--config=tiny.yaml"], marks=pytest.mark.slow),
        pytest.param(["data", "optimize", "imagenet", "data", "out/=shards"], marks=pytest.mark.slow),
        pytest.param(["sweep", "--ckpt_path=CKPT", "--settings=4@32", "--output=out/=sweep"], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_classes_and_files_of_any_name_are_shown(classified: Path, tmp_path: Path, command: list[str]) -> None:
    os.symlink(classified / "data", tmp_path / "data")
    shutil.copy(classified / "tiny.yaml", tmp_path / "tiny.yaml")
    arguments = [argument.replace("CKPT", checkpoint(classified)) for argument in command]
    done = run_in_terminal(arguments, tmp_path)
    assert done.status == 0, done.output
    shown_in(done.output, FILES)
    for folder in ("runs", "out"):
        if (tmp_path / folder).exists():
            assert_all_read(tmp_path / folder)
    if command[0] == "predict":
        (table,) = tmp_path.rglob("predictions.csv")
        rows = read_table(table)
        assert {row["path"] for row in rows} == {
            f"data/val/{folder}/{name}.jpg" for folder in CLASSES for name in (folder, os.fsdecode(b"caf\xe9"))
        }
        assert {row[f"name{k}"] for row in rows for k in range(1, 6)} <= {*CLASSES}


def test_class_folders_that_no_config_can_state_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / os.fsdecode(b"caf\xe9") / "a.jpg")
    write_image(tmp_path / "train" / "other" / "a.jpg")
    with pytest.raises(UserError, match=r"train/caf\\xe9 has a name that is no UTF-8"):
        tiny.new_data(tmp_path).samples("train")


def test_files_of_any_name_that_cannot_be_read_are_listed(classified: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
    write_image(tmp_path / "good.jpg")
    done = run_in_terminal(
        ["predict", f"--ckpt_path={checkpoint(classified)}", "--data.source=.", "--output=out"], tmp_path
    )
    assert done.status == 1
    assert shown_in(done.output, FILES) == FILES
    assert_all_read(tmp_path / "out")
    assert {row["path"] for row in read_table(tmp_path / "out" / "predictions.csv") if row["error"]} == {
        f"{name}.jpg" for name in FILES
    }


def test_scores_of_categories_of_any_name_are_shown(tmp_path: Path) -> None:
    objects.write_objects(tmp_path, train=1, val=3)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    ids = [3, 5, 90, *range(100, 97 + len(NAMES))]
    content["categories"] = [{"id": k, "name": name} for k, name in zip(ids, NAMES, strict=True)]
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": 1000 + k, "category_id": k} for k in ids]
    file.write_text(json.dumps(content))
    detections = [{**{key: first[key] for key in ("image_id", "bbox")}, "category_id": k, "score": 0.5} for k in ids]
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    arguments = ["score", "coco", f"--annotations={file}", "--predictions=detections.json", "--json=scores.json"]
    done = run_in_terminal(arguments, tmp_path)
    assert done.status == 0, done.output
    assert shown_in(done.output, [*NAMES]) == [*NAMES]
    assert [row["name"] for row in json.loads((tmp_path / "scores.json").read_text())["classes"]] == [*NAMES]
    assert_read(tmp_path / "scores.json")


@pytest.mark.slow
def test_videos_of_any_name_are_checked(tmp_path: Path) -> None:
    for name in FILES:
        path = tmp_path / "data" / "train" / "=class" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no video")
    write_film(tmp_path / "data" / "train" / "=good" / "+good.mp4")
    done = run_in_terminal(["data", "check", "kinetics", "data", "--output=out"], tmp_path)
    assert done.status == 1, done.output
    assert shown_in(done.output, FILES) == FILES
    assert_read(tmp_path / "data" / "checked_videos.csv")
    assert_read(tmp_path / "out" / "faulty_videos.csv")
    paths = {row["path"] for row in read_table(tmp_path / "out" / "faulty_videos.csv")}
    assert paths == {f"data/train/=class/{name}.mp4" for name in FILES}
    done = run_in_terminal(["data", "check", "kinetics", "data", "--output=out"], tmp_path)
    assert f"{len(FILES) + 1} of {len(FILES) + 1} videos have not changed" in done.output
