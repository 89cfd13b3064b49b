"""The reports of all tasks in a real browser: on a phone and a desktop, light and dark, sorted, enlarged, by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_tasks.cli.main import main
from tests.helpers.browser import DESKTOP, PHONE, assert_policy, drive, needs_browser
from tests.helpers.tiny_tasks import ON_ONE_DETECTOR

SCRIPT = """
const heading = document.querySelector("th button"), dialog = document.querySelector("dialog");
const cells = () => [...heading.closest("table").tBodies[0].rows].map(row => row.cells[0].textContent);
heading.click(); const up = cells(); heading.click(); const down = cells();
const picture = document.querySelector(".row button");
if (picture) picture.click();
const background = () => getComputedStyle(document.body).backgroundColor;
const before = background(); document.querySelector("button.scheme").click();
const sections = [...document.querySelectorAll("section")].map(section => section.textContent.length);
return {
  up, down, isEnlarged: !picture || dialog.open, images: document.querySelectorAll(".row img").length,
  widths: [document.documentElement.scrollWidth, innerWidth], turns: before !== background(), sections,
  broken: [...document.images].filter(image => image.src && !image.complete).length,
  requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
};
"""


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_a_report_of_each_task_is_read_on_a_phone_and_a_desktop(
    name: str, trained_run: Callable[[str], Path], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(trained_run(name)), f"--output={page}"]) == 0
    assert_policy(page)
    for size, is_dark in ((PHONE, True), (DESKTOP, False)):
        seen = drive(page, SCRIPT, size=size, is_dark=is_dark)
        assert seen["up"] == sorted(seen["up"], key=str.lower) or seen["up"] == seen["down"][::-1]
        assert seen["isEnlarged"] and seen["turns"] and seen["images"] > 0 and not seen["broken"]
        assert seen["widths"][0] <= seen["widths"][1]
        assert seen["requests"] == [] and all(length > 20 for length in seen["sections"])
    assert page.stat().st_size < 10 * 2**20
