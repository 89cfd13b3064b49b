"""``swinv2-tasks sample-data``: small synthetic datasets, to try every task without a download."""

from pathlib import Path

from swinv2_tasks.sample_data.writer import write_sample_data
from swinv2_tasks.tables import TerminalTable


def sample_data(root: str, seed: int = 0) -> None:
    """Writes small synthetic datasets in the formats of ImageNet, COCO, ADE20K and Kinetics.

    Args:
        root: folder to write, new or empty; one that already holds these data is left unchanged.
        seed: from 0; the same seed gives the same files.
    """
    datasets = write_sample_data(root, seed)
    table = TerminalTable(title=f"Sample data (seed {seed})")
    for column in ("folder", "train", "val", "classes"):
        table.add_column(column, justify="left" if column == "folder" else "right", overflow="fold")
    for name, counts in datasets.items():
        table.add_row(str(Path(root) / name), *(str(counts[column]) for column in ("train", "val", "classes")))
    table.print()
