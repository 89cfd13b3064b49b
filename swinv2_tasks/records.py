"""What plain values that were read from a file have to be, so that a wrong one is named before anything is made of it.

A check is called with a value and gives None where it fits; else the ``Fault``: where in the value, what is there, and
what was expected. Checks are made of others: ``mapping(size=each(whole(1)))``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import load_json, read_text
from swinv2_tasks.text import printable

LARGEST = 2**53
"""Counts above are none that were counted: floats cannot tell them from their neighbors."""


class Fault(NamedTuple):
    """What is wrong with a value; nothing is expected in particular where an entry is missing."""

    key: str
    """Where in it, as names joined by dots; empty for the value itself."""
    actual: str
    expected: str

    def inside(self, name: object) -> Fault:
        """The same as seen from the mapping or list that holds the value."""
        own = printable(name)[:60]
        return self._replace(key=f"{own}.{self.key}" if self.key else own)

    def __str__(self) -> str:
        where = f"{self.key} " if self.key else "it "
        return f"{where}is {self.actual}" + (f"; expected {self.expected}" if self.expected else "")


Check = Callable[[Any], Fault | None]


def require(value: Any, check: Check, source: str, remedy: str = "Take another checkpoint, or copy it again.") -> None:
    """Refuses a value that a check finds fault with.

    Args:
        value: read from a file.
        check: what it has to be.
        source: what begins the message: the file, and what of it.
        remedy: the last sentence of the message.

    Raises:
        UserError: naming the entry, what it is and what was expected.
    """
    if (fault := check(value)) is not None:
        raise UserError(f"{source} {fault}. {remedy}")


def read_json(path: Path, check: Check, remedy: str) -> Any:
    """What a JSON file says.

    Args:
        path: the file.
        check: what it has to be.
        remedy: the last sentence of the message.

    Raises:
        UserError: it cannot be read, is no JSON, or is something else.
    """
    try:
        content = load_json(read_text(path, encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is corrupt: it is no JSON ({str(error)[:120]}). {remedy}") from error
    require(content, check, f"{path} is corrupt: in it,", remedy)
    return content


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # where nothing has imported it, there are none
    return torch is not None and isinstance(value, torch.Tensor)


def describe(value: Any) -> str:
    """A value in a few words: text and numbers themselves, of others what they are."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(printable(value[:40]))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number of more than 16 digits"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "a tensor" if _is_tensor(value) else "no plain value"


def _expect(expected: str, fits: Callable[[Any], bool]) -> Check:
    return lambda value: None if fits(value) else Fault("", describe(value), expected)


# ---- single values

text = _expect("text", lambda value: isinstance(value, str))
flag = _expect("true or false", lambda value: isinstance(value, bool))
null = _expect("null", lambda value: value is None)


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """A whole number within bounds."""
    top = f" to {most}" if most != LARGEST else " up"
    return _expect(
        f"a whole number from {least}{top}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number within bounds."""
    bounds = [f"from {least:g}"] * (least > -math.inf) + [f"to {most:g}"] * (most < math.inf)
    return _expect(
        " ".join(["a number", *bounds]),
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < 10**300
            and least <= value <= most
        ),
    )


def score(value: Any) -> Fault | None:
    """A number, infinite where nothing has been scored yet, as such or in a tensor of one number."""
    if _is_tensor(value):
        fits = value.numel() == 1 and not value.is_complex()
    else:
        fits = isinstance(value, float) or number()(value) is None
    return None if fits else Fault("", describe(value), "a number")


def plain(value: Any) -> Fault | None:
    """Whatever a file may hold."""
    return None


def one_of(*choices: Any) -> Check:
    """One of some values, of the same type."""
    shown = ", ".join(map(str, choices))
    return _expect(
        f"one of {shown}" if len(choices) > 1 else shown,
        lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
    )


# ---- made of others


def optional(check: Check) -> Check:
    """Null, or what a check asks for."""

    def check_value(value: Any) -> Fault | None:
        fault = None if value is None else check(value)
        return fault and fault._replace(expected=fault.expected if fault.key else f"{fault.expected}, or null")

    return check_value


def either(*checks: Check) -> Check:
    """What one of some checks asks for."""

    def check_value(value: Any) -> Fault | None:
        faults = [check(value) for check in checks]
        if None in faults:
            return None
        all_faults = [fault for fault in faults if fault is not None]
        # A fault within the value is of the check that fits the value itself.
        inner = next((fault for fault in all_faults if fault.key), None)
        return inner or all_faults[0]._replace(expected=" or ".join(fault.expected for fault in all_faults))

    return check_value


def each(check: Check, length: int | None = None, least: int = 0) -> Check:
    """A list of values that a check asks for, of a length or of at least one."""
    expected = f"a list of {length}" if length is not None else f"a list of {least} or more" if least else "a list"

    def check_value(value: Any) -> Fault | None:
        if not isinstance(value, list | tuple) or length not in (None, len(value)) or len(value) < least:
            return Fault("", describe(value), expected)
        faults = (fault.inside(index) for index, entry in enumerate(value) if (fault := check(entry)) is not None)
        return next(faults, None)

    return check_value


def sequence(*checks: Check) -> Check:
    """A list of as many values as there are checks, each for one."""

    def check_value(value: Any) -> Fault | None:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            return Fault("", describe(value), f"a list of {len(checks)}")
        pairs = enumerate(zip(checks, value, strict=True))
        faults = (fault.inside(index) for index, (check, entry) in pairs if (fault := check(entry)) is not None)
        return next(faults, None)

    return check_value


def values(check: Check) -> Check:
    """A mapping of any names to values that a check asks for."""

    def check_value(value: Any) -> Fault | None:
        if not isinstance(value, Mapping):
            return Fault("", describe(value), "a mapping")
        faults = (fault.inside(name) for name, entry in value.items() if (fault := check(entry)) is not None)
        return next(faults, None)

    return check_value


def mapping(needed: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """A mapping with certain entries; more do not matter.

    Args:
        needed: entries that must be there.
        others: entries that may be missing.
    """

    def check_value(value: Any) -> Fault | None:
        if not isinstance(value, Mapping):
            return Fault("", describe(value), "a mapping")
        if absent := [name for name in needed if name not in value]:
            return Fault(absent[0], "missing", "")
        for name, check in {**needed, **(others or {})}.items():
            if name in value and (fault := check(value[name])) is not None:
                return fault.inside(name)
        return None

    return check_value


def like(example: Any) -> Check:
    """A value of the kind of an example: of a state, say, that a new object gives before another is loaded into it.

    Numbers are at least 0 where the example is; where it is null, nothing is known. Mappings have the example's
    entries, more do not matter.
    """
    if isinstance(example, bool):
        return flag
    if isinstance(example, int):
        return whole(min(0, example))
    if isinstance(example, float):
        return number(min(0.0, example)) if math.isfinite(example) else score
    if isinstance(example, str):
        return text
    if _is_tensor(example):
        return score if example.numel() == 1 else _like_tensor(example)
    if isinstance(example, Mapping):
        return mapping({name: like(entry) for name, entry in example.items()})
    if isinstance(example, list | tuple):
        return each(plain, len(example) or None)
    return plain


def _like_tensor(example: Any) -> Check:
    shape = example.shape
    return _expect(
        f"a tensor of {'×'.join(map(str, shape))}",
        lambda value: _is_tensor(value) and value.shape == shape and value.dtype == example.dtype,
    )


# ---- the files of a run's folder

STARTS = mapping(
    {"starts": each(mapping({"arguments": each(text, least=1)}, {"slurm_job": optional(text)}), least=1)},
)
"""What run.json holds: how the run was started, each time."""

SUMMARY = mapping(
    {"status": text},
    {"epochs": whole(), "steps": whole(), "best_metrics": values(optional(number()))},
)
"""What summary.json holds: how the run ended."""

FINISHED = mapping({"status": text, "epochs": whole(), "steps": whole()})
"""What it holds of a run that has come to its end."""
