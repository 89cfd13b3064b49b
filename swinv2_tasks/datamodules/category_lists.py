"""Categories of objects that are stated, where there is no annotation file to read them from."""

from collections.abc import Sequence
from pathlib import Path

from swinv2_tasks.datamodules.classes import Classes, abbreviate, is_number, read_classes, read_lines
from swinv2_tasks.errors import UserError


def stated_categories(source: Path | Sequence[str]) -> tuple[list[int], list[str]]:
    """Ids and names of categories, in the order of the class indices.

    Args:
        source: A list of names, or a text file with a name per line, whose ids then are 1, 2, …; or a CSV file of
            `id,name`, with or without that header, whose ids may leave gaps.

    Raises:
        UserError: The file is missing or no text, is empty or repeats an id, or an id is no whole number.
    """
    if not isinstance(source, Path):
        return _numbered(list(source))
    if source.suffix.lower() != ".csv":
        lines = read_lines(source, "class list (data.class_names)", "a name per line, or CSV `ID,NAME`")
        return _numbered([line.strip() for line in lines if line.strip()])
    classes = read_classes(source)
    return _whole_numbers(classes, source), classes.names


def _numbered(names: list[str]) -> tuple[list[int], list[str]]:
    return list(range(1, len(names) + 1)), names


def _whole_numbers(classes: Classes, source: Path) -> list[int]:
    others = [class_id for class_id in classes.ids if not is_number(class_id)]
    if others:
        raise UserError(
            f"{source} (data.class_names) has ids that are no numbers: {abbreviate(others)}. Expected the category "
            "ids of the annotations, as in `18,dog`."
        )
    return [int(class_id) for class_id in classes.ids]
