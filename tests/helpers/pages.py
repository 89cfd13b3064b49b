"""The fenced blocks of the README and the pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md"),
    *sorted(f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")),
)

BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PROGRAMS = ("swinv2-tasks", "make", "python", "torchrun", "srun", "pip", "pytest")
"""What a line of a command block begins with, after variables of the environment."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the language after the fence, and the text between the fences."""

    page: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def commands(self) -> list[list[str]]:
        """Its commands by word, without variables of the environment and comments; none when it holds no commands."""
        if self.language:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [_words(line) for line in lines]
        commands = [words for words in commands if words]
        return commands if all(words[0] in PROGRAMS for words in commands) else []


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: no command
        return [line]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return [word for word in words if word != "…"]


def read_blocks() -> list[Block]:
    return [
        Block(page, language, text)
        for page in PAGES
        for language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    ]


def inline_commands(page: str) -> list[list[str]]:
    """The commands of this package that stand within a sentence, with at least one argument."""
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [_words(code) for code in re.findall(r"`((?:PYTHONPATH=\. )?swinv2-tasks [^`|\[]+)`", text)]
