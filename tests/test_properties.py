"""Whatever a file holds, it is read or refused with one message: properties, over values that hypothesis makes up."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.classes import Classes, read_classes
from swinv2_tasks.datamodules.readers.annotations import rasterize, read_annotations
from swinv2_tasks.datamodules.readers.image_lists import listed_samples, with_real_labels
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values
from swinv2_tasks.datamodules.readers.video_lists import VideoLists, read_label_map
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights.files import read_checkpoint
from swinv2_tasks.weights.loading import load_weights
from tests.helpers.checkpoints import official_state, randomize, tiny_backbone
from tests.helpers.runs import last_checkpoint
from tests.helpers.tiny import config

EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,  # the same in every run
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
FEW = settings(EXAMPLES, max_examples=25)

CLASSES = Classes(["a", "b"], ["first", "second"])


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def is_read_or_refused(read: Callable[[], Any]) -> Any:
    """What a function returns, None where it refuses; anything else that it raises fails the test."""
    try:
        return read()
    except UserError as error:
        assert 0 < len(str(error).splitlines()) <= 3
        return None


NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, -(2**63), 10**400, 1e308])
TEXT = st.text(max_size=12) | st.sampled_from(["", "..", "../x", "/x", "\ud800", "9" * 5000, "a\nb", "\0", "\x1b[2J"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A tree of dicts and lists in which one to three values are others, or gone."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = [*_places(value)]
        assume(places)
        container, key = draw(st.sampled_from(places))
        if draw(st.booleans()):
            container[key] = draw(VALUES)
        else:
            del container[key]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []:
        yield value, key
        yield from _places(value[key])


# ---- annotations


def annotations(number: int = 2) -> dict[str, Any]:
    polygon, code = [[1.0, 1.0, 8.0, 1.0, 8.0, 8.0]], {"size": [12, 16], "counts": [20, 30, 142]}
    objects = [
        {
            "id": k,
            "image_id": k,
            "category_id": 3,
            "bbox": [1, 1, 7, 7],
            "area": 30,
            "iscrowd": k % 2,
            "segmentation": s,
        }
        for k, s in zip(range(number), (polygon, code), strict=True)
    ]
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 12, "width": 16} for k in range(number)]
    return {"images": images, "annotations": objects, "categories": [{"id": 3, "name": "square"}]}


@EXAMPLES
@given(changed(annotations()))
def test_annotations_are_read_or_refused(content: Any) -> None:
    with folder() as root:
        path = root / "annotations.json"
        path.write_text(json.dumps(content))
        if (read := is_read_or_refused(lambda: read_annotations(path))) is None:
            return
        for image in read.images:
            for entry in image.objects:
                assert all(map(math.isfinite, entry.box))
                if entry.segmentation is not None and image.height * image.width < 10**6:
                    draw = partial(rasterize, entry.segmentation, image.height, image.width, "x")
                    mask = is_read_or_refused(draw)
                    assert mask is None or mask.shape == (image.height, image.width)


# ---- lists


@EXAMPLES
@given(st.lists(st.lists(TEXT | st.sampled_from(["1.jpg", "a", "b", "0", "1"]), max_size=3), max_size=4))
@example([["1.jpg", "9" * 5000]])
@example([["\0", "a"]])
@example([["x" * 5000, "a"]])
def test_image_lists_are_read_or_refused(lines: list[list[str]]) -> None:
    with folder() as root:
        (root / "1.jpg").touch()
        path = root / "val.txt"
        path.write_bytes("\n".join(" ".join(line) for line in lines).encode("utf-8", "surrogatepass"))
        samples = is_read_or_refused(lambda: listed_samples(root, root, path, CLASSES))
        assert samples is None or all(Path(sample).is_relative_to(root) for sample, _ in samples)


@EXAMPLES
@given(
    st.lists(st.lists(TEXT | st.sampled_from(["1.mp4", "a", "b", "0", "label", "youtube_id"]), max_size=4), max_size=4)
)
@example([["label", "youtube_id", "time_start", "time_end"], ["a", "x", "9" * 5000, "1"]])
@example([["label", "youtube_id", "time_start", "time_end"], ["a", "x", "1e400", "nan"]])
@example([["label", "youtube_id"], ["a", "x" * 200_000]])
@example([["1.mp4", "9" * 5000]])
def test_video_lists_are_read_or_refused(lines: list[list[str]]) -> None:
    with folder() as root:
        (root / "1.mp4").touch()
        path = root / "val.csv"
        path.write_bytes("\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass"))
        stated: tuple[Labels | None, ...] = (None, "one", "several")
        for labels in stated:
            read = partial(VideoLists, [path], labels)
            is_read_or_refused(lambda read=read: read().labels(path))
            videos = is_read_or_refused(lambda read=read: read().videos(path, [root], CLASSES))
            assert videos is None or all(Path(video).is_relative_to(root) for video, _ in videos)


@EXAMPLES
@given(st.text(max_size=30) | TEXT, st.sampled_from(["list.csv", "list.txt", "list.json"]))
@example('"' + "x" * 200_000, "list.csv")
@example("[" * 100_000, "list.json")
@example("[" + "9" * 5000 + "]", "list.json")
@example('{"a": 0, "b": [0]}', "list.json")
@example('{"a": false, "b": 1}', "list.json")
def test_class_lists_are_read_or_refused(text: str, name: str) -> None:
    with folder() as root:
        path = root / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for read in (read_classes, read_label_map):
            classes = is_read_or_refused(partial(read, path))
            assert classes is None or len(classes.ids) == len(set(classes.ids)) == len(classes.names)


@EXAMPLES
@given(changed({"1.jpg": [0], "2.jpg": [0, 1]}) | VALUES)
def test_real_labels_are_read_or_refused(content: Any) -> None:
    with folder() as root:
        path = root / "real.json"
        path.write_text(json.dumps(content))
        samples = is_read_or_refused(lambda: with_real_labels([("1.jpg", 0), ("2.jpg", 1)], path, 2))
        assert samples is None or all(label in (0, 1) for _, labels in samples for label in labels)


# ---- label maps


@EXAMPLES
@given(
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"]),
    st.sampled_from(["PNG", "TIFF", "BMP", "WEBP", "JPEG", "GIF", "PPM"]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 2**32 - 1),
)
def test_label_maps_are_read_or_refused(mode: str, format: str, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    image = (
        Image.fromarray(pixels).convert("L").convert(mode) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    with folder() as root:
        path = root / "map.png"
        try:
            image.save(path, format)
        except (OSError, ValueError, KeyError):  # not of this mode
            assume(False)
        for read in (read_values, read_colors):
            values = is_read_or_refused(partial(read, path))
            assert values is None or values.shape == size
        if (mode, format) == ("L", "PNG"):
            assert np.array_equal(read_values(path), np.asarray(image))


# ---- configs


@FEW
@given(data=st.data())
@pytest.mark.slow
def test_configs_are_printed_or_refused(data: st.DataObject, capsys: pytest.CaptureFixture[str]) -> None:
    with folder() as root:
        content = config(Path("data"))
        content.pop("seed_everything")
        path = root / "config.yaml"
        path.write_text(yaml.safe_dump(data.draw(changed(content)), allow_unicode=False))
        capsys.readouterr()
        try:
            status = main(["fit", f"--config={path}", "--print_config"])
        except SystemExit as end:
            status = int(end.code or 0)
        errors = capsys.readouterr().err
        assert status in (0, 1, 2)
        assert "Traceback" not in errors
        assert status == 0 or 1 <= len(errors.rpartition("swinv2-tasks: ")[2].strip().splitlines()) <= 3


@pytest.mark.parametrize("value", [7, {"a": 1}, [1], None, True, 0.5])
@pytest.mark.parametrize("part", ["model", "data"])
def test_classes_that_are_no_text_are_refused(
    part: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "data")
    settings[part] = {**settings[part], "class_path": value}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert main(["fit", f"--config={path}"]) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.startswith("swinv2-tasks: ") and len(errors.strip().splitlines()) <= 3


@pytest.mark.parametrize("name", ["swinv2_tasks.backbone.LogCP", "LogCP", "swinv2_tasks.nothing.LogCPB", "a b", "."])
def test_a_class_that_is_not_there_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path / "data")
    settings["model"]["init_args"]["backbone"]["init_args"]["position_bias"] = name
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert main(["fit", f"--config={path}"]) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.startswith("swinv2-tasks: ") and len(errors.strip().splitlines()) <= 3


# ---- checkpoints


@FEW
@given(data=st.data())
def test_records_of_checkpoints_are_taken_or_refused(
    data: st.DataObject, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = torch.load(last_checkpoint(trained), weights_only=True)
    record = data.draw(changed(contents["swinv2_tasks"]))
    with folder() as root:
        path = root / "changed.ckpt"
        torch.save({**contents, "swinv2_tasks": record}, path)
        capsys.readouterr()
        status = main(["weights", "inspect", str(path)])
        assert status in (0, 1)
        errors = capsys.readouterr().err
        assert status == 0 or 1 <= len(errors.strip().splitlines()) <= 3


def odd_tensors(tensor: torch.Tensor) -> st.SearchStrategy[torch.Tensor]:
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
    others = [tensor.flatten(), tensor[None], torch.cat([tensor, tensor]), tensor[:0], tensor.to("meta")]
    sparse = [tensor.to_sparse(), torch.full_like(tensor, math.nan)]
    return st.sampled_from([*(tensor.to(dtype) for dtype in dtypes), *others, *sparse, tensor.sum()])


@EXAMPLES
@given(data=st.data())
def test_states_are_loaded_whole_or_refused(data: st.DataObject) -> None:
    state = official_state()
    names = st.sampled_from([key for key in state if "relative" not in key])
    for name in data.draw(st.lists(names, min_size=1, max_size=2, unique=True)):
        value = state.pop(name)
        kind = data.draw(st.sampled_from(["change", "drop", "rename"]))
        if kind == "change":
            state[name] = data.draw(odd_tensors(value))
        elif kind == "rename":
            state[data.draw(TEXT) or name.replace("0", "1000000")] = value
    backbone = tiny_backbone()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    if is_read_or_refused(lambda: load_weights(backbone, state)) is None:
        after = backbone.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())  # nothing half-loaded


@EXAMPLES
@given(st.binary(max_size=64), st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{", b""]))
def test_bytes_are_no_checkpoint(content: bytes, start: bytes) -> None:
    with folder() as root:
        path = root / "x.pth"
        path.write_bytes(start + content)
        is_read_or_refused(lambda: read_checkpoint(path))


# ---- sizes and windows


STATE = randomize(tiny_backbone()).state_dict()


@FEW
@given(
    window=st.integers(1, 12) | st.lists(st.integers(1, 9), min_size=4, max_size=4),
    size=st.tuples(st.integers(4, 70), st.integers(4, 70)),
)
def test_weights_of_any_window_serve_images_of_any_size(window: Any, size: tuple[int, int]) -> None:
    backbone = SwinTransformerV2(8, (2, 1, 1, 1), (1, 2, 4, 8), window)
    load_weights(backbone, STATE, window_size=4, image_size=128)
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, *size))
    for level, stride, channels in zip(maps, backbone.strides, backbone.channels, strict=True):
        assert level.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert level.isfinite().all()


@EXAMPLES
@given(VALUES | st.lists(st.integers(-2, 20), max_size=5))
def test_windows_are_set_or_refused(window: Any) -> None:
    backbone = tiny_backbone()
    before = backbone.window_size
    try:
        backbone.set_window(window)
    except UserError:
        assert backbone.window_size == before
    else:
        assert all(type(side) is int and side >= 1 for stage in backbone.window_size for side in stage)


@pytest.mark.parametrize("key", [7, None, "", "depth", "cls"])
def test_settings_that_no_backbone_has_are_refused(key: object) -> None:
    recorded: Any = {**tiny_backbone().config, key: 1}
    with pytest.raises(UserError, match="no setting of a backbone"):
        SwinTransformerV2.from_config(recorded)
    assert SwinTransformerV2.from_config(tiny_backbone().config).config == tiny_backbone().config
