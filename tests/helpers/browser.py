"""Pages in a real browser: headless Chromium, which a script drives."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PHONE = (390, 844)
DESKTOP = (1440, 900)

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def drive(page: Path, script: str, size: tuple[int, int] = DESKTOP, is_dark: bool = False) -> Any:
    """What a script gives that runs in a page.

    The page's own policy would not let it run, so a copy without it is opened; ``assert_policy`` holds the policy.

    Args:
        page: HTML file.
        script: body of a function in JavaScript, which returns plain values.
        size: of the window, in pixels.
        is_dark: whether the system's colors are dark.
    """
    text, policies = _POLICY.subn("", page.read_text("utf-8"))
    assert policies == 1
    run = f"const outcome = (() => {{ {script} }})();"
    end = 'document.body.innerHTML = ""; const e = document.createElement("pre"); e.id = "outcome";'
    end += "e.textContent = JSON.stringify(outcome); document.body.append(e);"
    text = text.replace("</body>", f"<script>{run}{end}</script></body>")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(text, "utf-8")
        options = [f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}/profile"]
        options += ["--blink-settings=preferredColorScheme=0"] if is_dark else []
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *options, "--dump-dom", copy.as_uri()]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'<pre id="outcome">(.*?)</pre>', printed, re.DOTALL)
    assert match, printed[-2000:]
    return json.loads(html.unescape(match[1]))


def rendered(page: Path) -> str:
    """The document once the page's own script has run, as far as the page's policy lets it."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        command = [str(CHROMIUM), *options, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def asked_for(page: Path, **options: Any) -> list[str]:
    """The URLs, other than the page's own, that a browser asks for when it opens a page."""
    entries = "performance.getEntriesByType('resource').map(entry => entry.name)"
    names: list[str] = drive(page, f"return {entries};", **options)
    return [name for name in names if not name.startswith("data:")]


def assert_policy(page: Path) -> None:
    """The page's policy lets nothing be asked for, and only its own script run."""
    (policy,) = _POLICY.findall(page.read_text("utf-8"))
    assert "default-src 'none'" in policy and "img-src data:" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]
