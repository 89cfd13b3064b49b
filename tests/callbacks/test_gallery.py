"""Galleries of predictions: every task writes one that says what its other files say, and a browser filters it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swinv2_tasks.callbacks import gallery
from swinv2_tasks.callbacks.gallery import GallerySample, Label, choose_samples, write_gallery
from swinv2_tasks.callbacks.output_names import short_names
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.readers.images import read_image
from tests.helpers.browser import PHONE, assert_policy, drive, needs_browser, rendered
from tests.helpers.names import NAMES
from tests.helpers.runs import from_last, predict, read_table
from tests.helpers.tiny_tasks import ON_ONE_DETECTOR, TINY_TASKS

SLOW = [
    name if name in ("classification", "mask_rcnn") else pytest.param(name, marks=pytest.mark.slow)
    for name in ON_ONE_DETECTOR
]


class Page(HTMLParser):
    """A gallery, read back: its samples, and all its tags with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.samples: list[dict[str, Any]] = []
        self._classes: list[str] = []
        self._select = ""
        self.text = path.read_text("utf-8")
        self.feed(self.text)
        for sample in self.samples:
            sample["labels"] = [(self._classes[index], score) for index, score in sample["labels"]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        if tag == "select":
            self._select = named["name"]
        if tag == "figure":
            labels = json.loads(named["data-labels"])
            self.samples.append({"labels": labels, "frame": named["data-frame"], "texts": []})
        if tag == "figcaption":
            self.samples[-1]["path"] = named["title"]

    def handle_data(self, data: str) -> None:
        tag, named = self.tags[-1] if self.tags else ("", {})
        if tag == "option" and self._select == "class" and named["value"] and data.strip():
            self._classes.append(data)
        if tag == "li" and data.strip():
            self.samples[-1]["texts"].append(data)


@pytest.mark.parametrize("name", SLOW)
def test_every_task_writes_what_its_table_says(
    name: str, trained_run: Callable[[str], Path], dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    source = dataset(name) / TINY_TASKS[name].validation
    output = predict(tmp_path, from_last(trained_run(name)), f"--data.source={source}")
    rows = read_table(output / "predictions.csv")
    samples = Page(output / "gallery.html").samples
    assert [sample["path"] for sample in samples] == [row["path"] for row in rows]
    assert (output / "gallery.html").read_text().count("data:image/jpeg") == len(rows)
    assert "script-src 'sha256-" in (output / "gallery.html").read_text()

    for sample, row in zip(samples, rows, strict=True):
        if name in ("classification", "video"):
            assert sample["labels"] == [(row["name1"], round(float(row["score1"]), 4))]
            names = TINY_TASKS[name].names
            folder = Path(row["path"]).parent.name
            if folder in (row["id1"], row["name1"]):
                assert sample["frame"] == "right"
            elif folder in names:
                assert sample["frame"] == "wrong"
        if name == "segmentation":
            classes = [text.rpartition(" ") for text in row["classes"].split("; ")]
            assert sample["labels"] == [(label, float(share)) for label, _, share in classes]
        if name == "mask_rcnn":
            counted = {
                label: number for number, _, label in map(_split, row["objects of score 0.3 or more"].split("; "))
            }
            assert {label for label, _ in sample["labels"]} == {*counted} - {""}
        if name == "simmim":
            assert sample["texts"] == [f"loss {row['loss']}"]


def _split(text: str) -> tuple[str, str, str]:
    return text.partition(" ")


def test_a_rerun_writes_it_again(trained: Path, images: Path, tmp_path: Path) -> None:
    few, all_of_them = f"--data.source={images / 'val' / 'n01'}", f"--data.source={images / 'val'}"
    output = predict(tmp_path, from_last(trained), few)
    assert len(Page(output / "gallery.html").samples) == 4
    predict(tmp_path, from_last(trained), all_of_them)
    assert len(Page(output / "gallery.html").samples) == 12

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    main(["predict", from_last(trained), f"--data.source={tmp_path / 'broken'}", f"--output={output}"])
    assert not (output / "gallery.html").exists()


# ---- the page


def new_picture(color: str) -> Image.Image:
    return Image.new("RGB", (60, 40), color)


def new_sample(path: str, *labels: Label, is_right: bool | None = None) -> GallerySample:
    return GallerySample(path, partial(new_picture, "red"), labels, is_right=is_right)


ANIMALS = [
    new_sample("a.jpg", Label("cat", 0.9), is_right=True),
    new_sample("b.jpg", Label("dog", 0.8), Label("cat", 0.3), is_right=False),
    new_sample("c.jpg", Label("cat", 0.55), is_right=False),
    new_sample("d.jpg"),
]

DRIVER = """
function choose(name, value) {
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
}
CHOICES
const shown = [...document.querySelectorAll(".sample:not([hidden]) figcaption")].map((line) => line.textContent);
return [shown.join(" "), form.elements.count.value];
"""


@needs_browser
@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ({}, "a.jpg b.jpg c.jpg d.jpg"),
        pytest.param({"class": "0"}, "a.jpg b.jpg c.jpg", marks=pytest.mark.slow),
        pytest.param({"class": "1"}, "b.jpg", marks=pytest.mark.slow),
        ({"class": "0", "score": "50"}, "a.jpg c.jpg"),
        pytest.param({"score": "60"}, "a.jpg b.jpg", marks=pytest.mark.slow),
        pytest.param({"order": "1"}, "d.jpg c.jpg b.jpg a.jpg", marks=pytest.mark.slow),
        ({"frame": "wrong", "order": "-1"}, "b.jpg c.jpg"),
    ],
    ids=["nothing", "class", "other class", "class and score", "score", "order", "wrong ones"],
)
def test_a_browser_filters_it(choices: dict[str, str], shown: str, tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery.html", ANIMALS, 4, "Predictions", "confidence")
    script = "".join(f"choose({name!r}, {value!r});" for name, value in choices.items())
    names, count = drive(tmp_path / "gallery.html", DRIVER.replace("CHOICES", script))
    assert names == shown
    assert count == f"{len(shown.split())} of 4 shown"


@needs_browser
def test_a_click_enlarges_on_a_phone_without_a_request(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery.html", ANIMALS, 4, "Predictions", "confidence")
    driver = """
    document.querySelector(".sample button").click();
    const names = performance.getEntriesByType("resource").map((entry) => entry.name);
    const width = document.documentElement.scrollWidth;
    return [dialog.open, names.filter((name) => !name.startsWith("data:")), width, innerWidth];
    """
    is_open, names, width, room = drive(tmp_path / "gallery.html", driver, PHONE, is_dark=True)
    assert is_open
    assert names == []
    assert width <= room


@needs_browser
def test_its_policy_lets_its_own_script_run(tmp_path: Path) -> None:
    write_gallery(tmp_path / "gallery.html", ANIMALS, 4, "Predictions", "confidence")
    assert_policy(tmp_path / "gallery.html")
    assert re.search("<form(?! hidden)[^>]*>", rendered(tmp_path / "gallery.html"))


def test_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    samples = [new_sample(f"{name}.jpg", Label(name, 0.5)) for name in NAMES]
    write_gallery(tmp_path / "gallery.html", samples, len(samples), NAMES[0], "confidence")
    page = Page(tmp_path / "gallery.html")
    assert {tag for tag, _ in page.tags if tag in ("script", "b", "iframe")} == {"script"}
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert all(not attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)
    assert all("://" not in attributes.get("src", "") for _, attributes in page.tags)


def test_many_are_spread_evenly_and_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_samples(3) == [0, 1, 2]
    chosen = choose_samples(50_000)
    assert len(chosen) == 500
    assert {b - a for a, b in itertools.pairwise(chosen)} == {100}

    noise = tmp_path / "noise.png"
    Image.effect_noise((800, 600), 120).convert("RGB").save(noise)
    samples = [GallerySample(str(noise), partial(read_image, noise)) for _ in range(60)]
    monkeypatch.setattr(gallery, "MOST_BYTES", 1_000_000)
    write_gallery(tmp_path / "gallery.html", samples, 50_000, "Predictions", "confidence")
    assert (tmp_path / "gallery.html").stat().st_size < 1_100_000
    assert "60 of 50,000 predictions, spread evenly" in (tmp_path / "gallery.html").read_text()


@pytest.mark.slow
def test_other_processes_take_over_and_what_is_gone_is_gray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_picture("blue").save(tmp_path / "there.png")
    samples = [GallerySample(name, partial(read_image, tmp_path / name)) for name in ("there.png", "gone.png")]
    pages = []
    for patience in (gallery.PATIENCE, 0.0):
        monkeypatch.setattr(gallery, "PATIENCE", patience)
        write_gallery(tmp_path / "gallery.html", samples, 2, "Predictions", "confidence")
        pages.append((tmp_path / "gallery.html").read_text())
    assert pages[0] == pages[1]
    assert pages[0].count("data:image/jpeg") == 1
    assert "1 picture could not be read any more" in pages[0]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.jpg", "x/b.jpg"], ["a.jpg", "b.jpg"]),
        (["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["x/a.jpg", "y/a.jpg", "b.jpg"]),
        (["/1/x/a.jpg", "/2/x/a.jpg"], ["/1/x/a.jpg", "/2/x/a.jpg"]),
        (["/x/a.jpg", "/x/a.jpg"], ["a.jpg", "a.jpg"]),
    ],
    ids=["different", "folders", "folders of one name", "one file twice"],
)
def test_names_have_folders_where_they_repeat(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names
