"""Lists the configs that can be named."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from textwrap import shorten

from swinv2_tasks.cli.config_files import TASK_CONFIGS, find_config, known_configs
from swinv2_tasks.text import printable, say

GROUPS = {
    "tasks": "Tasks",
    "overlays": "Overlays: given after a task's config, each with a --config of its own",
    "demo": "What `swinv2-tasks demo` trains",
    "own": "In ./configs",
    "paper": "Published recipes",
}
"""Titles of the groups of configs, by the names that ``group_of`` gives them."""


WIDTH = 74
"""Characters of a line beside its indentation, in a terminal of 80."""


def configs() -> None:
    """Lists all configs that --config can name, with the first line of what each says of itself."""
    known = known_configs()
    for group, title in GROUPS.items():
        names = [name for name in (*TASK_CONFIGS, *known) if group_of(name) == group]
        if not names:
            continue
        say(f"{title}:")
        for name in dict.fromkeys(names):
            say(f"  {printable(name)}")
            if line := first_comment(find_config(name)):
                say(f"      {printable(line)}")
        say()
    say("See one with all its values: swinv2-tasks fit --config NAME --print_config")


def group_of(name: str) -> str:
    """Which group of the list a config belongs to."""
    if name in TASK_CONFIGS:
        return "tasks"
    folder = Path(name).parts[0]
    if folder in ("overlays", "paper"):
        return folder
    return "demo" if name.startswith("demo_") else "own"


def first_comment(config: Path) -> str:
    """The first sentence of the comment that a config begins with, on one line; empty without one."""
    lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return shorten(comment.partition(". ")[0].rstrip("."), WIDTH, placeholder=" …")
