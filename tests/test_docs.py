"""Every program and every command of the README and the pages runs on small data, or is parsed, or stands in a table.

The tables: what stands in for the data and weights of a reader (`REWRITTEN`, `SMALLER`), what is only parsed (`PARSED`)
and which programs are not run here (`NOT_RUN`), each with the reason. A new block is run as it stands, and fails until
it works so or has a place in a table. A fence for what is no command (a layout of files, an output) says ``text``.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks

import swinv2_tasks
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from tests.helpers import motions, objects, photos, scenes, tiny
from tests.helpers.pages import PAGES, PROGRAMS, ROOT, read_blocks

PACKAGE = Path(swinv2_tasks.__file__).parent

BLOCKS = read_blocks()

TASKS = {"imagenet": tiny, "ade20k": scenes, "coco": objects, "kinetics": motions, "simmim": photos}
"""Runs of these names are there, small, and with them ``data/NAME``; also the names of the configs."""

TASK_OF_PAGE = {"docs/segmentation.md": "ade20k", "docs/detection.md": "coco", "docs/video.md": "kinetics"}
"""Whose checkpoint the word CKPT stands for; elsewhere that of a classifier."""

NOT_RUN = {
    "docs/extending.md": "each program is a module of its own: tests/test_extending.py",
    "docs/embedding.md": "each program is complete: test_programs_that_embed_tasks",
}
"""Pages whose programs and settings run elsewhere."""

PARSED = {
    r"make ": "make runs for minutes; its targets are what CI runs, here it says what it would do",
    r"pip install ": "needs the network",
    r"pytest ": "is a slow test itself",
    r"python -m benchmarks\.": "takes minutes to hours",
    r"torchrun |srun ": "several processes or machines; tests/training/test_strategies.py trains with two",
    r"swinv2-tasks fit (?!.*(overlays/small|demo_|--resume))": "trains a published model",
    r"swinv2-tasks (validate|sweep) .*--model\.weights ": "evaluates published weights on their dataset",
    r"swinv2-tasks predict .*--model\.weights ": "published weights; tests/cli/test_released.py has others",
    r"swinv2-tasks data (check|browse|convert) .*data/(fields|helmets|mine|signs|camvid|bccd)": "the data of a reader",
    r"swinv2-tasks memory .*giant": "takes a minute; tests/commands/memory estimates small models",
}
"""Commands that are parsed and not run, and why."""

REWRITTEN = {
    r"\bCKPT\b": "runs/{task}/0/checkpoints/best.ckpt",
    r"runs/(signs|NAME)/": "runs/imagenet/",
    r"runs/camvid/": "runs/ade20k/",
    r"runs/bccd/": "runs/coco/",
    r"runs/asl20/": "runs/kinetics/",
    r"--data\.source (FILE|FOLDER|data/\S+/val\S*|data/\S+/validation)": "--data.source photos/",
    r"(inspect|convert) (FILE|IN\.pth|IN)\b": r"\1 weights/FILE.pth",
    r"\bOUT(\.pth)?\b": "converted.pth --overwrite true",
    r"--predictions DIR": "--predictions data/ade20k/annotations/validation --class_names data/ade20k/names.txt",
    r"--annotations instances_val2017\.json": "--annotations data/coco/annotations/instances_val2017.json",
    r"imagenet22k\b": "imagenet",
    r"--workers 32": "--workers 1",
    r"--windows 8 12 16 --sizes 256 384 512": "--windows 4 --sizes 32",
    r"--settings 16@800 16@600 8@400": "--settings 4@64",
    r"--model\.backbone\.window_size 24 --data\.image_size 384": "--model.backbone.window_size 6 --data.image_size 48",
    r"memory --config ade20k": "memory --config demo_ade20k",
    r"--data\.background class": "--data.background ignore",
}
"""What stands in for a reader's files and for large numbers in commands that run."""

STEP = (
    *("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"),
    *("--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"),
    *("--data.batch_size=2", "--data.num_workers=0"),
)
"""Makes a training one of one step."""

SMALLER = {
    "docs/classification.md": {
        "image_size=256, batch_size=32": "image_size=64, batch_size=2, num_workers=0",
        "max_epochs=30": "max_epochs=1, limit_train_batches=1, limit_val_batches=1",
    },
    "docs/detection.md": {"3, 608, 800": "3, 64, 96", "(1200, 1600)": "(120, 160)", "3, 600, 800": "3, 60, 80",
                          "swinv2_tiny(window_size=16, drop_path_rate=0.2), CascadeMaskRCNNConfig()":
                          "task.backbone, CascadeMaskRCNNConfig(channels=16, post_nms_top_n=20)"},
    "docs/segmentation.md": {"512, 512": "64, 64", "crop_size=512, stride=340": "crop_size=64, stride=48",
                             "1000, 1500": "100, 150"},
    "docs/simmim.md": {"swinv2_base": "swinv2_tiny"},
    "docs/sweep.md": {"[(8, 256), (16, 512)]": "[(4, 32)]"},
    "docs/training.md": {"max_epochs=30": "max_epochs=1, limit_train_batches=1"},
}  # fmt: skip
"""Large numbers in programs, and what they are here."""


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if any(block.page == page and block.language == language for block in BLOCKS)]


def test_each_block_without_a_language_holds_commands() -> None:
    for block in BLOCKS:
        if block.language == "":
            assert block.commands, f"{block.page}: {block.first_line!r} is no command; open its fence with ```text"
        if block.language == "text":
            words = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert not words & set(PROGRAMS), (
                f"{block.page}: {block.first_line!r} is a command: open its fence with ```"
            )
    assert {block.language for block in BLOCKS} <= {"", "text", "python", "yaml", "{eval-rst}", "{toctree}"}


def test_the_tables_have_no_row_too_many() -> None:
    commands = [" ".join(words) for block in BLOCKS for words in block.commands]
    for pattern in [*PARSED, *REWRITTEN]:
        assert any(re.search(pattern, command) for command in commands), f"no command matches {pattern}"
    for page, texts in SMALLER.items():
        for text in texts:
            assert any(text in block.text for block in BLOCKS if (block.page, block.language) == (page, "python")), text


# ---- commands are parsed


@pytest.mark.parametrize("page", pages_with(""))
def test_commands_can_be_parsed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        for words in block.commands if block.page == page else []:
            parse(words, TASK_OF_PAGE.get(page, "imagenet"), monkeypatch, capsys)


def parse(words: list[str], task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where a command names what is not there: an option, a config, a target, a test, an extra."""
    program, *arguments = words
    if program in ("torchrun", "srun"):
        program = "swinv2-tasks"
        arguments = arguments[arguments.index("swinv2_tasks" if words[0] == "torchrun" else "swinv2-tasks") + 1 :]
    if program == "swinv2-tasks":
        parse_own(arguments, task, capsys)
    elif program == "python":
        module, *arguments = arguments[1:]
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)  # typing looks names up in it
        assert end.value.code == 0
        assert not set(options(arguments)) - set(options_in(capsys.readouterr().out)), f"{module}: {arguments}"
    elif program == "make":
        done = subprocess.run(["make", "-n", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "pip":
        extras = re.findall(r"\[(\w+)\]", arguments[-1])
        assert set(extras) <= set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        )
    elif program == "pytest":
        (file,) = (ROOT / word for word in arguments if word.startswith("tests/"))
        assert f"_{arguments[arguments.index('-k') + 1]}" in file.read_text()


def parse_own(arguments: list[str], task: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = arguments
    if command in ("fit", "validate", "test", "predict"):
        settle(command, rest, task)
        return
    names = [word for word in rest[:1] if re.fullmatch(r"inspect|convert|check|browse|optimize|coco|ade20k", word)]
    assert main([command, *names, "--help"]) == 0
    own = options_in(capsys.readouterr().out)
    unknown = [option for option in options(rest) if option not in own]
    takes_settings = command in ("memory", "sweep") or (command == "data" and rest[0] in ("check", "browse"))
    if takes_settings:  # which take the arguments of fit or validate as well
        keep = [k for k, word in enumerate(rest) if word in unknown]
        settings = [word for k in keep for word in rest[k : k + 2]]
        stated = any(word.startswith("--config") for word in settings) or command != "data"
        config = [] if stated else [f"--config={rest[1]}.yaml"]
        settle("validate" if command == "sweep" else "fit", [*config, *settings], task)
    else:
        assert not unknown, f"{command} {names}: {unknown}"


def settle(command: str, arguments: list[str], task: str) -> None:
    """Lets the command line say which settings the arguments come to; a run's config and checkpoint are its task's."""
    words = " ".join(["", *(word.replace(" ", "") for word in arguments)])
    for name in re.findall(r"runs/(\w+)", words):
        task = name if name in TASKS else task
    words = re.sub(r"runs/\w+/\d+/config\.yaml", f"{task}.yaml", words)
    words = re.sub(r" --(ckpt_path|resume)( [^-]\S*)?", "", words)
    configs = re.findall(r" --config[ =](\S+)", words)
    complete = any("overlays/" not in config for config in configs)
    with pytest.raises(SystemExit) as end:
        main([command, *([] if complete else [f"--config={task}.yaml"]), *words.split(), "--print_config"])
    assert end.value.code == 0, f"{command} {arguments}"


def options(arguments: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in arguments if word.startswith("--")]


def options_in(text: str) -> list[str]:
    return re.findall(r"--[\w.-]*\w", text)


@pytest.mark.parametrize("page", [page for page in pages_with("yaml") if page not in NOT_RUN])
def test_settings_go_over_a_config(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in BLOCKS if (block.page, block.language) == (page, "yaml")):
        overlay = tmp_path / "overlays" / f"{number}.yaml"
        overlay.parent.mkdir(exist_ok=True)
        overlay.write_text(block.text)
        settle("fit", [f"--config={TASK_OF_PAGE.get(page, 'imagenet')}.yaml", f"--config={overlay}"], "")


# ---- commands and programs run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with small data, weights and runs under the names that the pages use."""
    from swinv2_tasks import ClassificationTask, save_weights, swinv2_tiny

    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = Path("data")
        data.mkdir()
        roots = [
            tiny.write_images(data / "imagenet"),
            scenes.write_scenes(data / "ade20k"),
            objects.write_objects(data / "coco"),
            motions.write_motions(data / "kinetics"),
            photos.write_photos(data / "simmim"),
        ]
        for (name, helper), root in zip(TASKS.items(), roots, strict=True):
            config = helper.write_config(Path(f"{name}.yaml"), root.absolute())
            assert main(["fit", f"--config={config}", f"--name={name}", "--trainer.max_epochs=1"]) == 0
            config.unlink()  # the pages mean the shipped one
        for number in (3, 4):
            shutil.copytree("runs/imagenet/0", f"runs/imagenet/{number}")
        shutil.copytree(data / "imagenet", data / "mine")
        shutil.copytree(data / "imagenet" / "val", data / "imagenetv2-matched-frequency-format-val")
        shutil.copytree(data / "coco" / "val2017", data / "coco" / "test2017")
        annotations = data / "coco" / "annotations"
        content = json.loads((annotations / "instances_val2017.json").read_text())
        (annotations / "image_info_test-dev2017.json").write_text(json.dumps({**content, "annotations": []}))
        Path("detections.json").write_text(json.dumps(as_detections(content)))
        for source, target in ((data / "imagenet/val/n01", "photos"), (data / "kinetics" / "val", "videos")):
            shutil.copytree(source, target)
        clip = next(path for path in Path("videos").rglob("*") if path.suffix == ".mp4")
        shutil.copy(clip, "clip.mp4")
        weights = Path("weights/swinv2_tiny_patch4_window8_256.pth")
        weights.parent.mkdir()
        save_weights(ClassificationTask(swinv2_tiny(), 1000), weights, format="official", image_size=256)
        for name in ("FILE.pth", "file.pth", "../IN.pth"):
            shutil.copy(weights, weights.parent / name)
        yield folder


def as_detections(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A results file in which the objects of an annotation file are found as they are annotated."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    detections = []
    for each in content["annotations"]:
        mask = coco_masks.frPyObjects(each["segmentation"], *sizes[each["image_id"]])
        mask = coco_masks.merge(mask) if isinstance(mask, list) else mask
        mask["counts"] = mask["counts"].decode()
        entry = {key: each[key] for key in ("image_id", "category_id", "bbox")}
        detections.append({**entry, "segmentation": mask, "score": 0.9})
    return detections


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(""))
def test_commands_run(page: str, workplace: Path) -> None:
    for block in BLOCKS:
        for words in block.commands if block.page == page else []:
            command = " ".join(words)
            if not any(re.match(pattern, command) for pattern in PARSED):
                run(words[1:], TASK_OF_PAGE.get(page, "imagenet"))


def run(arguments: list[str], task: str) -> None:
    command = " ".join(word.replace(" ", "") for word in arguments)
    for pattern, replacement in REWRITTEN.items():
        command = re.sub(pattern, replacement.format(task=task), command)
    words = command.split()
    if "--resume" in words:  # by what a resumed training may change
        words += ["--trainer.max_epochs=3"]
    elif words[0] == "fit":
        words += STEP
        config = re.search(r"--config (\w+)\.yaml", command)
        if config and config[1] in TASKS:  # over which a small model is laid
            words += [f"--data.root=data/{config[1]}"]
            words += ["--data.class_names=data/ade20k/names.txt"] * (config[1] == "ade20k")
    assert main(words) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages_with("python") if page not in NOT_RUN])
def test_programs_run(page: str, workplace: Path) -> None:
    """The blocks of a page are one program; some begin with a task and data that a reader has."""
    from swinv2_tasks import ClassificationTask, swinv2_tiny

    names: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
    if page == "docs/training.md":
        names |= {"task": tiny.new_task(), "data": tiny.new_data(Path("data/imagenet"))}
    if page == "docs/weights.md":
        names |= {"task": ClassificationTask(swinv2_tiny(), 1000), "backbone": swinv2_tiny()}
        names["swinv2_tiny"] = swinv2_tiny
    for block in BLOCKS:
        if (block.page, block.language) == (page, "python"):
            text = block.text
            for large, small in SMALLER.get(page, {}).items():
                text = text.replace(large, small)
            exec(compile(text, page, "exec"), names)


EMBEDDING = [block.text for block in BLOCKS if (block.page, block.language) == ("docs/embedding.md", "python")]


@pytest.mark.parametrize("number", range(len(EMBEDDING)))
def test_programs_that_embed_tasks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EMBEDDING[number], f"embedding.md, program {number}", "exec"), {"__name__": "program"})
    assert not list(tmp_path.iterdir())


AUGMENTED = np.full((80, 100, 3), 128, np.uint8)


def augment_mask(data: Any) -> None:
    image, mask = data.augmentation.build((64, 48), data.resize)(AUGMENTED, np.zeros((80, 100), np.uint8))
    assert image.shape == (64, 48, 3) and mask.shape == (64, 48)


def augment_objects(data: Any) -> None:
    objects = [CocoObject(1, 0, (40.0, 30.0, 20.0, 10.0), 200.0, False, None)]
    scene = data.augmentation.build(masks=False)(AUGMENTED, objects, None, "an image")
    assert scene["image"].shape == (800, 1000, 3) and scene["boxes"].shape == (1, 4)


@pytest.mark.parametrize(
    ("page", "augment"), [("docs/segmentation.md", augment_mask), ("docs/detection.md", augment_objects)]
)
def test_programs_with_an_augmentation_of_ones_own(
    page: str, augment: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = (block.text for block in BLOCKS if block.page == page and "RandomRotation" in block.text)
    names: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
    exec(compile(program, page, "exec"), names)
    augment(names["data"])


# ---- the reference


def test_the_reference_has_a_page_for_each_public_module() -> None:
    """The fences around other libraries' private members are for the package alone."""
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")} - {"index"}
    modules = {path.parent.name for path in PACKAGE.glob("*/__init__.py") if "__all__" in path.read_text()}
    modules |= {path.stem for path in PACKAGE.glob("*.py") if "__all__" in path.read_text()} - {"__init__"}
    modules -= {path.stem for path in PACKAGE.glob("*_internals.py")}
    assert pages == modules
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", index)) == set(swinv2_tasks.__all__)


def test_each_promise_names_tests_that_exist() -> None:
    promises = (ROOT / "SECURITY.md").read_text().split("\n## What is promised")[1].split("\n## Versions")[0]
    numbered = re.split(r"\n\d+\. ", promises)[1:]
    assert len(numbered) == 10
    for promise in numbered:
        named = re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", promise)
        named = [(file, name) for file, name in named if file or name]
        assert named, promise
        text = ""
        for file, name in named:
            text = (ROOT / file).read_text() if file else text
            assert f"def {name or 'test_'}" in text, (file, name)
