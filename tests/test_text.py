"""What others wrote is shown, never interpreted."""

from __future__ import annotations

import io
import logging
import shlex
import sys
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swinv2_tasks.callbacks.figures import save_figure
from swinv2_tasks.text import closest, command_word, escape, label, printable, say, shorten, show_warnings, unescape
from tests.helpers.names import NAMES, any_text, effects


@given(any_text())
@settings(deadline=None)
def test_text_is_one_line_in_which_nothing_does_anything(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    plain = "".join(character for character in text if character.isprintable())
    if plain == text:
        assert shown == text


@pytest.mark.parametrize("name", [name for name in NAMES if not name.isprintable() and name != "line\nbreak"])
def test_what_does_something_is_found(name: str) -> None:
    """The check that the tests of commands rest on."""
    assert len(effects(f"\x1b[1mclass\x1b[0m\r\n{name}\r\n\r\x1b[K")) == 1


def test_every_character_is_told_from_every_other_by_its_escape() -> None:
    codes = [*range(0x10000), *range(0xE0000, 0xE0080), sys.maxunicode]
    characters = [chr(code) for code in codes if not chr(code).isprintable()]
    escapes = {escape(character): character for character in characters}
    assert len(escapes) == len(characters) > 2000
    assert all(text.isascii() and text.isprintable() and unescape(text) == escapes[text] for text in escapes)


def test_escapes_that_are_none_stay() -> None:
    assert unescape(r"\q \x1 \u12 \Uffffffff \ ") == r"\q \x1 \u12 \Uffffffff \ "


@given(st.lists(any_text()))
@settings(deadline=None)
def test_what_is_said_ends_lines_and_does_nothing_else(texts: list[str]) -> None:
    stream = io.StringIO()
    say(*texts, file=stream)
    written = stream.getvalue()
    assert effects(written) == []
    assert written.count("\n") == 1 + sum(text.count("\n") for text in texts)


def test_warnings_do_nothing_else_either(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings()
    show_warnings()  # each is printed once all the same
    logging.getLogger("swinv2_tasks").warning("%s is odd", "\x1b]0;owned\x07")
    assert capsys.readouterr().err == "\\x1b]0;owned\\x07 is odd\n"


@given(any_text())
@settings(deadline=None)
def test_a_command_to_copy_has_each_name_as_one_word(text: str) -> None:
    line = f"swinv2-tasks validate --ckpt_path {command_word(text)} --name x"
    assert line.isprintable()
    assert shlex.split(line) == ["swinv2-tasks", "validate", "--ckpt_path", printable(text), "--name", "x"]


@pytest.mark.parametrize("name", [*NAMES, "$", r"\$", "$$", "a$b$c$", r"$\frac{$", "x" * 200])
def test_a_label_is_drawn_as_it_is_written(name: str) -> None:
    figure = Figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = figure.text(0, 0, label(name)).get_window_extent(renderer)
    literal = figure.text(0, 0, shorten(name), parse_math=False).get_window_extent(renderer)
    assert (drawn.width, drawn.height) == (literal.width, literal.height)


@given(any_text())
@settings(deadline=None, max_examples=20)
def test_figures_take_any_label_and_warn_of_none(text: str) -> None:
    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    axes.plot([0, 1], label=f"a{label(text)}")
    axes.set(title=label(text), xlabel=label(text), ylabel=label(f"日本語 {text}"))
    axes.legend()
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, content)
    assert content.getvalue().startswith(b"\x89PNG")


def test_labels_have_an_end() -> None:
    assert len(shorten("x" * 10**6)) == 60
    assert shorten("x" * 60) == "x" * 60
    assert shorten("abcdef", 4) == "abc…"


def test_names_are_alike_whatever_their_case() -> None:
    assert closest("Adamw", ["RAdam", "AdamW"]) == ["AdamW"]
    assert closest("zebra", ["RAdam", "AdamW"]) == []
