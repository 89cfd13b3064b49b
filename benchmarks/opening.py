"""How long a large annotation file in COCO's format takes to open, and what memory that takes.

    python -m benchmarks.opening

Writes a file of polygons and opens it as a training does: read, checked, cleaned and ready to be sampled. Opening runs
in a process of its own, of which the seconds, those on a core and the largest resident memory are printed.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDES = (480, 640)


def write(path: Path, objects: int, images: int, corners: int) -> None:
    """An annotation file of so many objects, each of one polygon of a thousand, in random order of images."""
    rng = np.random.default_rng(0)
    names = [{"id": k, "file_name": f"{k:012d}.jpg", "height": SIDES[0], "width": SIDES[1]} for k in range(images)]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    entries = [json.dumps(draw(rng, corners)).removesuffix("}") for _ in range(1000)]
    of_images = rng.integers(images, size=objects).tolist()
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(names)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number, image in enumerate(of_images):
            separator = ", " if number else ""
            file.write(f'{separator}{entries[number % 1000]}, "image_id": {image}, "id": {number}}}')
        file.write("]}")


def draw(rng: np.random.Generator, corners: int) -> dict[str, Any]:
    """An entry of annotations, without its ids."""
    x, y = rng.integers(0, 500), rng.integers(0, 380)
    points = (rng.integers(0, 10_000, (corners, 2)) / 100 + (x, y)).round(2).ravel()
    columns, rows = points[::2], points[1::2]
    box = [columns.min(), rows.min(), np.ptp(columns).round(2), np.ptp(rows).round(2)]
    return {
        "segmentation": [points.tolist()],
        "area": round(float(box[2] * box[3]), 4),
        "iscrowd": 0,
        "bbox": list(map(float, box)),
        "category_id": int(rng.integers(1, 81)),
    }


def open_file(path: Path) -> None:
    """Opens an annotation file, and prints seconds and gigabytes."""
    from swinv2_tasks.datamodules.readers.annotations import clean, describe_unmatched, read_annotations

    imported = _peak()
    start, processor = time.perf_counter(), time.process_time()
    annotations = read_annotations(path)
    read = time.perf_counter()
    images, _ = clean(annotations.images)
    describe_unmatched(annotations, masks=True)
    end, processor = time.perf_counter(), time.process_time() - processor
    kept = sum(len(image.objects) for image in images[:1000])
    print(json.dumps({"read": read - start, "clean": end - read, "peak": _peak(), "imports": imported, "kept": kept,
                      "processor": processor, "objects": len(annotations.images.objects)}))  # fmt: skip


def _peak() -> float:
    """The largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        objects: in the file that is written.
        images: that they are on.
        corners: of each object's polygon.
        file: an annotation file, instead of one that is written.
    """

    objects: int = 1_500_000
    images: int = 120_000
    corners: int = 10
    file: Path | None = None


def main(settings: Settings) -> None:
    """Writes the file, opens it in a process of its own, and prints what that took."""
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.processor() or platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        path = settings.file or Path(folder) / "annotations.json"
        if settings.file is None:
            write(path, settings.objects, settings.images, settings.corners)
        print(f"{path.stat().st_size / 1e6:,.0f} MB")
        program = "import sys; from pathlib import Path; from benchmarks.opening import open_file; "
        command = [sys.executable, "-c", f"{program}open_file(Path(sys.argv[1]))", str(path)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds = result["read"] + result["clean"]
        cleaning, on_core = f"{result['clean']:.1f} of them to clean", f"{result['processor']:.1f} s of a core"
        print(f"{result['objects']:,} objects: {seconds:.1f} s, {cleaning}; {on_core}")
        print(f"largest memory {result['peak']:.2f} GB, {result['imports']:.2f} GB of it imports")


if __name__ == "__main__":
    from benchmarks.measuring import parse_settings  # with torch, whose memory is none of what is measured

    main(parse_settings(Settings, __doc__))
