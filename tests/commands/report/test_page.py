"""The page of a report in a real browser: sorting, enlarging, dark and light, on a phone; hostile texts are texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from swinv2_tasks.commands.report.blocks import (
    Chart,
    Column,
    Details,
    Example,
    Examples,
    Number,
    Numbers,
    Picture,
    Section,
    Table,
)
from swinv2_tasks.commands.report.charts import draw
from swinv2_tasks.commands.report.page import write_sections
from swinv2_tasks.pages import embed
from tests.helpers.browser import DESKTOP, PHONE, asked_for, assert_policy, drive, needs_browser
from tests.helpers.names import NAMES

pytestmark = needs_browser

ROWS: list[list[float | str | None]] = [["b", 0.25, 1200], ["a", 1 / 3, 7], ["c10", None, 30], ["c9", 0.1, 4]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a block of each sort."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    url, _ = embed(Image.new("RGB", (64, 48), "red"))
    svg = draw(lambda axes: axes[0].plot([0, 1], [1, 0]))
    table = Table("classes", [Column("name"), Column("score", digits=2), Column("images")], ROWS)
    example = Example([Picture(url, "a red image"), Picture(url, "its twin")], "red.png", ["predicted: blue"], "wrong")
    sections = [
        Section("Result", [Numbers("", [Number("top1", 2 / 3), Number("nothing", None)])]),
        Section("Tables", [table, Details("config.yaml", "a: 1\nb: 2")]),
        Section("Charts", [Chart("curve", svg, "falls"), Chart("wide", svg, "falls", is_wide=True)]),
        Section("Examples", [Examples("worst", [example] * 3)]),
    ]
    write_sections(path, "run/0", "ClassificationTask", sections)
    return path


def test_tables_are_sorted_by_numbers_in_full_and_by_names(page: Path) -> None:
    script = """
    const press = column => document.querySelectorAll("th button")[column].click();
    const cells = column => [...document.querySelectorAll("tbody tr")].map(row => row.cells[column].textContent);
    const states = [];
    press(2); states.push(cells(2)); press(2); states.push(cells(2));
    press(0); states.push(cells(0));
    press(1); states.push(cells(0)); press(1); states.push(cells(0));
    states.push([...document.querySelectorAll("[data-value]")].map(element => element.dataset.value));
    return states;
    """
    *states, exact = drive(page, script)
    assert states[:2] == [["4", "7", "30", "1,200"], ["1,200", "30", "7", "4"]]
    assert states[2] == ["a", "b", "c9", "c10"]
    # what there is nothing of is last, whichever way
    assert states[3:] == [["c9", "b", "a", "c10"], ["a", "b", "c9", "c10"]]
    assert {float(text) for text in exact} == {2 / 3, 0.25, 1 / 3, 0.1, 1200, 7, 30, 4}


def test_a_picture_is_enlarged_by_a_click_and_closed_by_another(page: Path) -> None:
    script = """
    const dialog = document.querySelector("dialog"), states = [dialog.open];
    document.querySelector(".row button").click(); states.push(dialog.open);
    const image = dialog.querySelector("img");
    states.push(image.src.startsWith("data:image/jpeg") && image.alt);
    states.push(image.getBoundingClientRect().width > 64);
    dialog.click(); states.push(dialog.open);
    return states;
    """
    assert drive(page, script) == [False, True, "a red image", True, False]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_colors_follow_the_system_until_the_button_is_pressed(page: Path, is_dark: bool) -> None:
    script = """
    const brightness = element => getComputedStyle(element).color.match(/[0-9]+/g).slice(0, 3).map(Number)
      .reduce((a, b) => a + b) / 3;
    const background = () => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0];
    const before = [background(), brightness(document.body), brightness(document.querySelector("svg"))];
    document.querySelector("button.scheme").click();
    return [before, [background(), brightness(document.body), brightness(document.querySelector("svg"))]];
    """
    before, after = drive(page, script, is_dark=is_dark)
    for (background, text, ink), is_dark_now in ((before, is_dark), (after, not is_dark)):
        assert (background < 60 and text > 180) if is_dark_now else (background > 200 and text < 80)
        assert ink == text


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_window(page: Path, size: tuple[int, int]) -> None:
    widths = drive(page, "return [document.documentElement.scrollWidth, innerWidth];", size=size)
    assert widths[0] <= widths[1]


def test_nothing_is_asked_for(page: Path) -> None:
    assert_policy(page)
    assert asked_for(page) == []


def test_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    names = [*NAMES, "<script>document.title='ran'</script>", '"><img src=x onerror="document.title=1">']
    table = Table("names", [Column("name")], [[name] for name in names])
    url, _ = embed(Image.new("RGB", (8, 8)))
    examples = [Example([Picture(url, name)], name, [name]) for name in names]
    write_sections(path, names[-1], names[0], [Section(names[-2], [table, Examples("", examples)], names[-1])])
    title, rows, figures = drive(
        path,
        "const count = name => document.querySelectorAll(name).length;"
        "return [document.title, count('tbody tr'), count('figure')];",
    )
    assert title == names[-1] and rows == figures == len(names)
    assert asked_for(path) == []
