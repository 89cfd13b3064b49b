"""One language: code, messages, configs and pages use the field's words (docs/glossary.md) and American spelling."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOTS = (
    "swinv2_tasks",
    "tests",
    "benchmarks",
    "configs",
    "docs",
    "data/README.md",
    ".ci",
    "pyproject.toml",
    "Makefile",
)
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
ENDINGS = {".py", ".md", ".yaml", ".toml", ""}

TERMS: dict[str, str] = {
    # what is not to be written (a regular expression, in any case): what to write instead
    r"loading process": "DataLoader worker",
    r"(weights|states?|everything|optimizer|model|head) in shares|shares of weights|\bdealt\b(?! with)": (
        "sharded, distributed"
    ),
    r"(checkpoints?|tensors?|lies?|is|are|with) in parts": "sharded checkpoint, sharded tensor",
    r"computed again": "recomputed; activation checkpointing",
    r"states in 8 bits": "8-bit optimizer states",
    r"\blevers?\b": "memory-saving option",
    r"mirror image|\bmirrored\b|\bmirroring\b": "horizontal flip",
    r"by heart": "overfit",
    r"label hunger|\bin small\b(?! model)": "data efficiency, small-scale study",
    r"\bread anew\b|\brereads?\b": "re-augmented, test-time re-sampling",
    r"killed thirty times|what safety costs": "fault injection, overhead of the training guards",
    r"\b(go|goes|going|went) on\b(?! top)": "resume, continue",
    r"bit (by|for) bit": "bitwise identical",
    r"whole or not|all or nothing": "atomic",
    r"without[ _]memory": "on the meta device",
    r"constants[ _]of[ _]their[ _]own": "isolated cache",
    r"\bmee?t(s|_)?( its| no| any)? classes": "check classes, set classes",
    r"names[ _]tell": "compare class names",
    r"mistake behind|first hand": "find the UserError, strip the worker's traceback",
    r"shared error": "collective error",
    r"\bhomeless": "unsupported keys, unexpected keys",
    r"\b(take_out|put_back)\b": "flatten, unflatten",
    r"damage": "corrupt, checksum mismatch",
    r"\b(left|stays?|keeps?) fresh\b|\bfresh (models?|blocks?|weights)\b": "randomly initialized",
    r"reading CLI\b": "parse-only CLI",
    r"log[ _]measured": "log epoch metrics",
    r"\bunder way\b": "temporary buffers, EMA copy, DDP buckets",
    r"suppression of doubles|\bsuppression=|\.suppression\b|suppression: (hard|linear|gaussian)": "nms",
    r"many-sided": "cat_max_ratio: a limit on one class's share",
    r"\bflowing\b": "mask information flow",
    r"\baims?\b": "regression targets",
    r"\blikeli(est|er)\b": "top-k, highest-scoring",
    r"\bweighting\b|inference\.(window|tiles)\b|\btiles?\b": "blend, crop_size, sliding_window_batch_size",
    r"\b(short_sides|max_side)\b": "min_size, max_size",
    r"\b(sampled_regions|hidden_channels)\b": "batch_size_per_image, representation_size",
    r"\b(group_shapes|jitter_size)\b": "aspect_ratio_grouping, scale_jitter",
    r"\b(target_window|reference_batch|backbone_lr_scale)\b": (
        "norm_target_patch_size, base_batch_size, backbone_lr_mult"
    ),
    r"\bcrop_ratio\b": "crop_pct",
    r"\bmade[- ]up\b(?! for)|\b(synthetic|sample) world\b|\bpaint(s|ed|ers?)\b": "synthetic data, renderer",
    r"(?<!docs/)(?<!\()\bpictures?/|\"pictures?\"\]|and pictures\b": "image, figure, visualization",
    r"\bpictures? of (a |the )?(prediction|detection|reconstruction|result)": "visualization",
    r"\bcomplain(s|ed|ts?)?\b": "raises",
    r"\banswer(s|ed)?\b": "returns, predicts; label, prediction",
    r"\bas (it is|they are)(?=[.,;:)]|$)": "unchanged",
}

BRITISH = (
    r"colour|\bcentr(e|es|ed|ing)\b|behaviour|neighbour|honour|favour|\blabour|"
    r"(normal|random|optim|initial|organ|recogn|summar|synchron|visual|general|special|minim|maxim|serial)is(e|ed|es|er|ing|ation)\b|"
    r"\banalyse|\bgrey|\b(un)?labelled|labelling|modelling|cancelled|travelled|\blicence|\bcatalogue|artefact|\bwhilst\b"
)

VAGUE = {"found", "kind", "kinds", "one", "place", "places", "annotated", "looks"}
"""Names that say nothing of a value: write what it is, as in ``detections``, ``task_name``, ``sample``, ``index``."""

QUOTED: dict[tuple[str, str], str] = {
    # (file, part of the line): why it stands there
    ("tests/test_words.py", ""): "the list itself",
    ("tests/datamodules/readers/test_channels.py", '"tile": ('): "an argument of tifffile",
}
"""What is quoted from elsewhere, each with its reason."""


def lines() -> Iterator[tuple[str, int, str]]:
    """Path, number and text of every line that is to be in one language."""
    paths = [ROOT / page for page in PAGES]
    for root in ROOTS:
        path = ROOT / root
        paths += sorted(path.rglob("*")) if path.is_dir() else [path]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if not path.is_file() or path.suffix not in ENDINGS:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not any(name == file and part in line for file, part in QUOTED):
                yield name, number, line


def holds(line: str, term: str) -> bool:
    """Whether a line holds a term, as words or within a name."""
    return any(re.search(term, text, re.IGNORECASE) for text in (line, line.replace("_", " ")))


def find(term: str) -> list[str]:
    return [f"{name}:{number}: {line.strip()}" for name, number, line in lines() if holds(line, term)]


@pytest.mark.parametrize("term", TERMS)
def test_the_fields_words_are_used(term: str) -> None:
    matches = find(term)
    assert not matches, f"write {TERMS[term]!r} instead, in\n" + "\n".join(matches)


def test_spelling_is_american() -> None:
    matches = find(BRITISH)
    assert not matches, "\n".join(matches)


def stored_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module gives to variables, parameters and attributes, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def test_variables_of_the_package_are_named_by_what_they_are() -> None:
    matches = []
    for path in sorted((ROOT / "swinv2_tasks").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        matches += [f"{name}:{line}: {variable}" for variable, line in stored_names(tree) if variable in VAGUE]
    assert not matches, "\n".join(matches)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("a lever that saves memory", True),
        ("clever", False),
        ("The run goes on.", True),
        ("activations go on top", False),
        ("it is left as it is.", True),
        ("drawn as it is read", False),
        ("def test_it_goes_on() -> None:", True),
        ("a table and pictures of detections", True),
        ("![Bias](pictures/transfer.png)", False),
        ("coded pictures", False),
    ],
)
def test_the_search_itself(text: str, matches: bool) -> None:
    assert any(holds(text, term) for term in TERMS) == matches


def test_what_is_quoted_is_there() -> None:
    """A quotation that is gone would stay in the list unnoticed."""
    assert [(file, part) for file, part in QUOTED if part not in (ROOT / file).read_text(encoding="utf-8")] == []
