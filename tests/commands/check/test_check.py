"""Datasets with planted faults beside their clean twins, through the command line."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.check import measuring
from swinv2_tasks.commands.check.duplicates import MOST_BITS, near_pairs
from swinv2_tasks.commands.check.facts import Facts, Task, measure, perceptual_hash
from swinv2_tasks.commands.check.findings import CHECKS
from tests.helpers.faulty_data import PLANTERS, WRITERS, photograph, reencode, save, write_imagenet, write_simmim
from tests.helpers.faulty_layouts import FAULTY_LAYOUTS
from tests.helpers.names import NAMES
from tests.helpers.processes import start, wait_for

TASKS = [*WRITERS]


def check(task: str, root: Path, output: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status of a check, and its findings."""
    workers = 1 if task == "kinetics" else 0
    status = main(["data", "check", task, str(root), f"--output={output}", f"--workers={workers}", *options])
    return status, json.loads((output / "check.json").read_text())


def named_files(results: dict[str, Any]) -> set[tuple[str, str]]:
    """Each check with the last part of the names of the files that it names."""
    return {
        (check["check"], Path(finding["file"]).name) for check in results["checks"] for finding in check["findings"]
    }


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task == "kinetics" else ()) for task in TASKS]
)
def test_planted_faults_are_named_and_the_clean_twin_has_none(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, faulty = (WRITERS[task](tmp_path / name) for name in ("clean", "faulty"))
    planted = PLANTERS[task](faulty)
    before = state_of(faulty)

    status, results = check(task, clean, tmp_path / "out_clean")
    beside_splits = {"no_validation"} if task == "simmim" else set()
    assert {entry["check"] for entry in results["checks"]} == beside_splits
    assert status == 0

    status, results = check(task, faulty, tmp_path / "out")
    assert set(planted) - named_files(results) == set()
    assert status == 1
    printed = capsys.readouterr().out
    for name in {name for name, _ in planted}:
        assert f"({name})" in printed
    if task != "kinetics":
        assert state_of(faulty) == before


@pytest.mark.parametrize("layout", FAULTY_LAYOUTS)
def test_faults_of_annotations_do_not_hide_each_other_in_other_layouts(layout: str, tmp_path: Path) -> None:
    write, plant = FAULTY_LAYOUTS[layout]
    clean, faulty = (write(tmp_path / name) for name in ("clean", "faulty"))
    planted = plant(faulty)
    status, results = check("coco", clean, tmp_path / "out_clean")
    assert results["checks"] == [] and status == 0

    status, results = check("coco", faulty, tmp_path / "out")
    assert status == 1
    findings = [
        (entry["check"], Path(finding["file"]).name, finding["detail"])
        for entry in results["checks"]
        for finding in entry["findings"]
    ]
    for name, file, part in planted:
        assert any(finding[:2] == (name, file) and part in finding[2] for finding in findings), (
            name,
            file,
            part,
            findings,
        )
    assert not any(name == "refused_labels" for name, _, _ in findings)


def test_each_check_of_the_table_is_planted_or_tested_elsewhere(tmp_path: Path) -> None:
    """A check that nothing plants would be believed without a test."""
    planted = {
        name for task in TASKS if task != "kinetics" for name, _ in PLANTERS[task](WRITERS[task](tmp_path / task))
    }
    planted |= {"short_video", "single_frame_video"}
    elsewhere = {
        "refused_labels", "class_only_in_val", "empty_split", "no_validation", "imbalanced_classes",
        "class_without_train", "same_pixels_in_split", "large_image", "color_among_gray",
    }  # fmt: skip
    assert set(CHECKS) == planted | elsewhere


def test_classes_that_one_split_lacks(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    save(root / "val" / "emu" / "bird.jpg", photograph(900))
    for k in range(121):
        save(root / "train" / "cat" / f"more_{k}.jpg", photograph(1000 + k), quality=90)
    for path in sorted((root / "train" / "dog").iterdir()):
        path.unlink()
    status, results = check("imagenet", root, tmp_path / "out")
    expected = {("class_only_in_val", "emu"), ("class_without_train", "dog"), ("imbalanced_classes", "train")}
    assert expected <= named_files(results)
    assert ("refused_labels", "train") in named_files(results)
    assert status == 1


def test_a_mean_and_a_deviation_are_those_of_the_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.stack([photograph(k) for k in range(4)]) / 255
    for k in range(4):
        save(tmp_path / "data" / f"{k}.png", photograph(k))
    _, results = check("simmim", tmp_path / "data", tmp_path / "out")
    assert results["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=0.01)
    assert results["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=0.01)
    assert "--data.mean" in capsys.readouterr().out


# ---- near-duplicates


def all_near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """As near_pairs, pair by pair."""
    return {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= MOST_BITS
        and np.abs(thumbnails[i].astype(int) - thumbnails[j]).mean() <= 5
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_search_has_the_pairs_that_comparing_all_has(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = []
    for base in bases:
        for flips in rng.integers(0, 10, 4):  # more than may differ among them
            bits = rng.choice(64, flips, replace=False).astype(np.uint64)
            hashes.append(base ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0)))
    thumbnails = rng.integers(100, 104, (len(hashes), 192)).astype(np.uint8)
    thumbnails[::5] += 20
    pairs = near_pairs(np.array(hashes, np.uint64), thumbnails)
    expected = all_near_pairs(np.array(hashes, np.uint64), thumbnails)
    assert len(expected) > 20
    assert {(int(i), int(j)) for i, j in pairs} == expected
    assert len(pairs) == len(expected)


@pytest.mark.parametrize(("scale", "quality"), [(1.0, 30), (0.8, 60), (1.25, 90), (0.5, 80)])
def test_images_compressed_and_resized_are_near(tmp_path: Path, scale: float, quality: int) -> None:
    distances = []
    for seed in range(20):
        original = save(tmp_path / "original.png", photograph(seed))
        copy = reencode(original, tmp_path / "copy.jpg", scale, quality)
        first, second = (measure(Task(str(path), "image")) for path in (original, copy))
        assert first.hash is not None and second.hash is not None
        distances.append((first.hash ^ second.hash).bit_count())
    assert max(distances) <= MOST_BITS


def test_images_of_a_single_color_have_no_hash(tmp_path: Path) -> None:
    for k, color in enumerate((10, 120, 250)):
        save(tmp_path / "train" / f"{k}.png", np.full((50, 50, 3), color, np.uint8))
    _, results = check("simmim", tmp_path / "train", tmp_path / "out")
    assert {entry["check"] for entry in results["checks"]} == {"flat_image", "no_validation"}


def test_a_hash_is_that_of_the_cosine_transform() -> None:
    from scipy.fft import dctn

    gray = photograph(3, 32, 32).mean(axis=2).astype(np.float32)
    frequencies = dctn(gray, type=2)[:8, :8] / 4
    bits = (frequencies > np.median(frequencies)).ravel()
    assert perceptual_hash(gray) == int("".join("01"[int(bit)] for bit in bits), 2)


# ---- the page


class Links(HTMLParser):
    """What a page loads or leads to, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.policies: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(named["content"] or "")
        assert not [name for name in named if name.startswith("on")]


def test_the_page_loads_nothing_and_shows_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", *NAMES]
    root = tmp_path / "data"
    for name in [name for name in hostile if "/" not in name][:12]:  # as many as the page shows
        save(root / f"{name}.jpg", np.full((50, 50, 3), 99, np.uint8), format="JPEG")
    status, results = check("simmim", root, tmp_path / "out")
    assert status == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))

    text = (tmp_path / "out" / "check.html").read_text("utf-8")
    page = Links()
    page.feed(text)
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert len(page.links) <= 12 * len(results["checks"])
    assert page.policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {"script", "link", "iframe", "object", "base"} & {*page.tags}
    assert "url(" not in text and "@import" not in text
    assert "{{ 7*7 }}" in text and "&lt;script&gt;" in text
    assert "color-scheme: light dark" in text and 'name="viewport"' in text


# ---- resuming, exit statuses


def test_what_was_measured_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_simmim(tmp_path / "data")
    _, before = check("simmim", root, tmp_path / "out")
    journal = tmp_path / "out" / "measured.jsonl"
    journal.write_bytes(journal.read_bytes() + b'[1, "image", "cut o')
    changed = save(root / "sub0" / "image_0.jpg", photograph(77))

    read: list[Task] = []

    def record(tasks: list[Task], workers: int, seconds: float) -> Any:
        read.extend(tasks)
        return [(task, measure(task), True) for task in tasks]

    monkeypatch.setattr(measuring, "_in_processes", record)
    _, after = check("simmim", root, tmp_path / "out")
    assert [task.path for task in read] == [str(changed)]
    assert after["checks"] == before["checks"]


@pytest.mark.slow
def test_a_stopped_check_resumes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for k in range(400):
        save(root / f"{k}.jpg", photograph(k, 600, 800), quality=80)
    arguments = ["data", "check", "simmim", str(root), f"--output={tmp_path / 'out'}", "--workers=1"]
    running = start(arguments, tmp_path)
    journal = tmp_path / "out" / "measured.jsonl"
    wait_for(lambda: journal.is_file() and journal.stat().st_size > 0)
    running.signal(15)
    assert running.wait(30).status == 143
    number = len(journal.read_text().splitlines())
    assert 0 < number < 400
    status, results = check("simmim", root, tmp_path / "out")
    assert status == 0 and results["splits"] == {"train": 400}


def crash(chunk: list[Task]) -> list[Facts]:
    """In place of a decoder."""
    if any("image_3" in task.path for task in chunk):
        os.kill(os.getpid(), 11)
    return [measure(task) for task in chunk]


@pytest.mark.slow
def test_a_crash_is_of_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_simmim(tmp_path / "data")
    monkeypatch.setattr(measuring, "_measure_all", crash)
    _, results = check("simmim", root, tmp_path / "out", "--workers=1")
    (entry,) = [entry for entry in results["checks"] if entry["severity"] == "error"]
    assert [(Path(finding["file"]).name, finding["detail"]) for finding in entry["findings"]] == [
        ("image_3.jpg", "its decoder crashed")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagnet", "data"], "did you mean imagenet?"),
        (["imagenet", "nowhere"], "nowhere does not exist"),
        (["simmim", "data", "--output=data/out"], "inside the dataset"),
        (["imagenet", "data", "--files.train_list=x"], "--files is of videos"),
        (["simmim", "data", "--config=coco.yaml"], "the config is of CocoDataModule"),
    ],
)
def test_refused_arguments_end_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_simmim(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_settings_are_those_of_fit(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    (root / "val").rename(root / "held_out")
    config = tmp_path / "own.yaml"
    config.write_text((Path(__file__).parents[3] / "configs" / "imagenet.yaml").read_text())
    options = [f"--config={config}", "--data.val_dir=held_out", f"--json={tmp_path / 'findings.json'}"]
    status, results = check("imagenet", root, tmp_path / "out", *options)
    assert results["splits"] == {"train": 18, "val": 12} and status == 0
    assert json.loads((tmp_path / "findings.json").read_text()) == results
    assert re.search("train.*18", (tmp_path / "out" / "check.html").read_text(), re.DOTALL)
