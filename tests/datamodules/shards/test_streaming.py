"""Images in shards give the batches of the folder that they were made of, and nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ImageNetAugmentation, ImageNetDataModule
from swinv2_tasks.datamodules.shards import Shards, Streaming, open_shards
from swinv2_tasks.datamodules.shards.reader import CONFIG
from swinv2_tasks.errors import UserError
from tests.helpers.connections import python_path
from tests.helpers.processes import run, send_at
from tests.helpers.resuming import RESUME, differences, newest, write_run
from tests.helpers.tiny import COLORS, write_images

SETTINGS: dict[str, Any] = {"image_size": 32, "batch_size": 8}
UNMIXED = ImageNetAugmentation(mixup=0.0, cutmix=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images to train on and 15 to validate, in three classes; not to be changed."""
    return write_images(tmp_path_factory.mktemp("folder") / "data", train=20, val=5)


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """The same in shards of some five images; not to be changed."""
    out = folder.parent / "shards"
    assert main(["data", "optimize", "imagenet", str(folder), str(out), "--workers=1", "--shard_mb=0.01"]) == 0
    assert len(list((out / "train").glob("*.bin"))) > 5 and len(list((out / "val").glob("*.bin"))) > 1
    return out


@pytest.fixture
def shards(written: Path, tmp_path: Path) -> Path:
    """A copy to harm."""
    fsspec.filesystem("file").put(f"{written}/", str(tmp_path / "shards"), recursive=True)
    return tmp_path / "shards"


@pytest.fixture
def url(shards: Path, tmp_path: Path) -> Iterator[str]:
    """The same behind a URL."""
    files = fsspec.filesystem("memory")
    files.put(f"{shards}/", "/shards", recursive=True)
    yield "memory://shards"
    files.rm("/shards", recursive=True)


def datamodule(root: object, cache: Path, **arguments: Any) -> ImageNetDataModule:
    stream = Streaming(**{"cache_dir": str(cache), **arguments.pop("stream", {})})
    return ImageNetDataModule(str(root), **{**SETTINGS, "num_workers": 0, **arguments}, stream=stream)


def by_name(batches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Batches in which images are called by their file's name, wherever it lies."""
    return [{**batch, "path": [Path(path).name for path in batch.get("path", [])]} for batch in batches]


def read_batches(data: ImageNetDataModule, epochs: int = 2) -> list[dict[str, Any]]:
    """Those of some epochs of training, then those of validation."""
    torch.manual_seed(7)
    data.setup("fit")
    loader, all_batches = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        all_batches += list(loader)
    return by_name([*all_batches, *data.val_dataloader()])


def list_cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.bin"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["path", "file", "memory"])
def test_batches_are_those_of_the_folder(
    source: str, workers: int, folder: Path, shards: Path, url: str, tmp_path: Path
) -> None:
    root = {"path": str(shards), "file": f"file://{shards}", "memory": url}[source]
    streamed = datamodule(root, tmp_path / "cache", num_workers=workers)
    expected = datamodule(folder, tmp_path)
    assert differences(read_batches(streamed), read_batches(expected)) == []
    assert (streamed.class_ids, streamed.train_samples) == (list(COLORS), 60)
    assert [name.rpartition("/")[2] for name in streamed.train_sample_ids(2)] == [
        Path(path).name for path in expected.train_sample_ids(2)
    ]
    assert len(list_cached(tmp_path / "cache")) == (len(list_cached(shards)) if source == "memory" else 0)


@pytest.mark.parametrize("names", [["n03", "n01", "n02", "n99"], "classes.csv"])
def test_other_class_lists(names: Any, folder: Path, written: Path, tmp_path: Path) -> None:
    names = str(folder / names) if isinstance(names, str) else names
    pair = [datamodule(root, tmp_path, class_names=names, augmentation=UNMIXED) for root in (folder, written)]
    assert pair[0].class_names == pair[1].class_names
    assert differences(*map(read_batches, pair)) == []


def test_classes_of_the_writing_are_kept(folder: Path, tmp_path: Path) -> None:
    arguments = [str(folder), str(tmp_path / "out"), "--class_names", str(folder / "classes.csv"), "--workers=1"]
    assert main(["data", "optimize", "imagenet", *arguments]) == 0
    assert datamodule(tmp_path / "out", tmp_path).class_names == ["red apple", "green leaf", "blue sea"]


def test_real_labels(folder: Path, written: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (folder / "val").rglob("*.jpg"))
    (tmp_path / "real.json").write_text(json.dumps({name: [i % 3] * (i % 2) for i, name in enumerate(names)}))
    evaluated = []
    for root in (folder, written):
        data = datamodule(root, tmp_path, real_labels=str(tmp_path / "real.json"))
        data.setup("validate")
        evaluated.append(by_name(data.val_dataloader()))
    assert differences(*evaluated) == []
    assert evaluated[1][0]["label"].shape == (8, 3)


@pytest.mark.parametrize("source", ["path", "memory"])
def test_testing_takes_the_validation_images(source: str, folder: Path, shards: Path, url: str, tmp_path: Path) -> None:
    data = datamodule(shards if source == "path" else url, tmp_path / "cache")
    assert [split for split in ("train", "val", "test") if data.has(split)] == ["train", "val"]
    data.setup("test")
    expected = datamodule(folder, tmp_path)
    expected.setup("test")
    assert differences(by_name(data.test_dataloader()), by_name(expected.test_dataloader())) == []


def test_shards_beside_a_plain_folder(folder: Path, written: Path, tmp_path: Path) -> None:
    mixed = datamodule(written, tmp_path, val_dir=str(folder / "val"))
    assert differences(read_batches(mixed), read_batches(datamodule(folder, tmp_path))) == []


def test_litdata_reads_the_shards(folder: Path, written: Path) -> None:
    stored = [map(bytes, sample) for sample in StreamingDataset(f"{written}/train")]
    assert {name.decode(): (content, label.decode()) for content, label, name in stored} == {
        str(path.relative_to(folder)): (path.read_bytes(), path.parent.name)
        for path in (folder / "train").rglob("*.jpg")
    }


def test_training_images_of_a_shard_are_of_several_classes(written: Path) -> None:
    shards = open_shards(f"{written}/train", Streaming())
    assert shards is not None
    classes: dict[int, set[str]] = {}
    for index, position in enumerate(shards.order):
        classes.setdefault(int(np.searchsorted(shards.starts, position, side="right")), set()).add(shards[index][1])
    assert sum(len(names) > 1 for names in classes.values()) > len(classes) / 2


# ---- windows and the cache


def open_folder(root: object, **streaming: Any) -> Shards:
    shards = open_shards(str(root), Streaming(**streaming))
    assert shards is not None
    return shards


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_keeps_few_shards_in_use(window: int, written: Path) -> None:
    shards = open_folder(written / "train", window=window)
    orders = [shards.shuffling()(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    for order in orders:
        assert sorted(order.tolist()) == list(range(60))
        shard = np.searchsorted(shards.starts, shards.order[order], side="right")
        used = [np.flatnonzero(shard == number) for number in np.unique(shard)]
        in_use = [sum(steps[0] <= now <= steps[-1] for steps in used) for now in range(60)]
        assert max(in_use) <= window + 1
        assert np.mean(shard[1:] == shard[:-1]) < 0.9  # mixed, not one after the other


def test_a_window_changes_the_order_alone(url: str, shards: Path, tmp_path: Path) -> None:
    remote, local = (datamodule(root, tmp_path / "cache", stream={"window": 2}) for root in (url, shards))
    assert differences(read_batches(remote), read_batches(local)) == []
    plain = datamodule(shards, tmp_path)
    plain.setup("fit"), plain.train_dataloader()
    assert sorted(remote.train_sample_ids(0)) != sorted(plain.train_sample_ids(0))


def test_the_cache_is_kept_small(url: str, shards: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in list_cached(shards))
    limit = 4.5 * largest
    stream = {"window": 1, "cache_gb": limit / 1e9}
    remote = datamodule(url, tmp_path / "cache", stream=stream, num_workers=2)
    expected = datamodule(shards, tmp_path, stream={"window": 1})
    assert differences(read_batches(remote), read_batches(expected)) == []
    assert 0 < sum(path.stat().st_size for path in list_cached(tmp_path / "cache")) <= limit
    with pytest.raises(UserError, match=r"shuffled among all shards.*cache_gb allows.*data\.stream\.window"):
        datamodule(url, tmp_path / "cache", stream={"cache_gb": limit / 1e9}).setup("fit")


def test_only_the_cache_of_this_package_is_emptied(url: str, shards: Path, tmp_path: Path) -> None:
    stream = {"window": 1, "cache_gb": 4.5 * max(path.stat().st_size for path in list_cached(shards)) / 1e9}
    before = list_cached(shards)
    read_batches(datamodule(url, shards, stream=stream))
    assert set(before) <= set(list_cached(shards))


def test_shards_written_anew_are_fetched_anew(folder: Path, url: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    read_batches(datamodule(url, cache))
    other = write_images(tmp_path / "other", train=3, val=1)
    assert main(["data", "optimize", "imagenet", str(other), str(tmp_path / "out"), "--workers=1"]) == 0
    fsspec.filesystem("memory").rm("/shards", recursive=True)
    fsspec.filesystem("memory").put(f"{tmp_path / 'out'}/", "/shards", recursive=True)
    assert differences(read_batches(datamodule(url, cache)), read_batches(datamodule(other, cache))) == []


# ---- resuming


@pytest.fixture
def server(written: Path) -> Iterator[str]:
    """Serves the shards by HTTP; processes of their own reach it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(written))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_training_from_a_url_killed_twice_ends_as_one_from_the_folder(
    folder: Path, server: str, tmp_path: Path
) -> None:
    straight = write_run(tmp_path / "straight", folder)
    assert run(["fit", "--config=tiny.yaml"], straight).status == 0
    killed = write_run(tmp_path / "killed", folder)
    data = [f"--data.root={server}", "--data.num_workers=2", f"--data.stream.cache_dir={tmp_path / 'cache'}"]
    assert run(["fit", "--config=tiny.yaml", "--save.every_n_steps=3", *data], killed, **send_at(7)).status == -9
    again = f"--data.root={server}"  # a URL that a checkpoint states is not asked for anything
    assert run([*RESUME, again], killed, **send_at(14)).status == -9
    assert run([*RESUME, again], killed).status == 0
    assert list_cached(tmp_path / "cache")
    states = [torch.load(newest(run) / "checkpoints" / "last.ckpt", weights_only=True) for run in (straight, killed)]
    for entry in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert differences(states[0][entry], states[1][entry]) == []
    samples = [set((folder / "journal" / "seen_0.txt").read_text().splitlines()) for folder in (straight, killed)]
    assert samples[0] == samples[1]
    assert run(["validate", "--ckpt_path=runs/tiny/0/checkpoints/last.ckpt", again], killed).status == 0


# ---- what is wrong with places and shards


def test_a_missing_or_cut_off_shard(shards: Path, tmp_path: Path) -> None:
    victim = shards / "train" / "chunk-0-1.bin"
    content = victim.read_bytes()
    victim.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"train/chunk-0-1\.bin has [\d,]+ bytes, its index says"):
        read_batches(datamodule(shards, tmp_path))
    victim.unlink()
    with pytest.raises(UserError, match=r"train/chunk-0-1\.bin is missing"):
        read_batches(datamodule(shards, tmp_path))
    victim.write_bytes(content)
    data = datamodule(shards, tmp_path)
    data.setup("fit")
    victim.unlink()
    with pytest.raises(UserError, match=r"train/chunk-0-1\.bin is missing"):
        list(data.train_dataloader())


def test_a_missing_or_cut_off_shard_behind_a_url(url: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    content = files.cat_file("/shards/train/chunk-0-1.bin")
    files.pipe_file("/shards/train/chunk-0-1.bin", content[:-1])
    with pytest.raises(UserError, match=r"memory://shards/train/chunk-0-1\.bin has [\d,]+ bytes, its index says"):
        read_batches(datamodule(url, tmp_path / "cache"))
    files.rm("/shards/train/chunk-0-1.bin")
    with pytest.raises(UserError, match=r"memory://shards/train/chunk-0-1\.bin is missing"):
        read_batches(datamodule(url, tmp_path / "cache"))
    assert "chunk-0-1.bin" not in {path.name for path in list_cached(tmp_path / "cache")}


def test_shards_written_without_some_images_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is evaluated then is less than what the folder held."""
    images = write_images(tmp_path / "images")
    broken = next((images / "val").rglob("*_1.jpg"))
    broken.write_bytes(broken.read_bytes()[:300])
    out = tmp_path / "out"
    assert main(["data", "optimize", "imagenet", str(images), str(out), "--skip_faulty=true", "--workers=1"]) == 0
    data = datamodule(out, tmp_path / "cache")
    data.setup("fit")
    data.setup("validate")
    warnings = [record.getMessage() for record in caplog.records if "were written without" in record.getMessage()]
    (line,) = warnings
    assert f"{out}/val" in line and "without 1 images" in line and broken.name in line


def test_a_corrupt_shard(shards: Path, tmp_path: Path) -> None:
    victim = shards / "val" / "chunk-0-0.bin"
    size = victim.stat().st_size
    victim.write_bytes(victim.read_bytes()[: size // 2] + bytes(size - size // 2))
    data = datamodule(shards, tmp_path, faulty_samples="skip", faulty_budget=15)
    data.setup("validate")
    read = sum(len(batch["label"]) for batch in data.val_dataloader())
    assert 0 < len(data.faults.skipped) == 15 - read
    assert all(re.search(r"val/n01/n01_\d\.jpg|/val, sample \d$", name) for name in data.faults.skipped)
    victim.write_bytes(b"\xff" * size)
    data = datamodule(shards, tmp_path)
    data.setup("validate")
    with pytest.raises(UserError, match=r"Cannot read sample 0 of the shard .*val/chunk-0-0\.bin.*corrupt"):
        list(data.val_dataloader())


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickled_samples_are_refused_and_not_run(shards: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()  # so it would do harm
    trace.unlink()
    folder = shards / "train"
    for path in folder.glob("*.bin"):
        path.unlink()
    writer = BinaryWriter(str(folder), chunk_bytes=10**6)
    for number in range(60):
        writer.add_item(number, (Bomb(trace), b"n01", b"a.jpg"))
    (folder / "index.json").unlink()
    writer.done()
    writer.merge()
    index = json.loads((folder / "index.json").read_text())
    assert index["config"]["data_format"] == ["pickle", "bytes", "bytes"]
    index["classes"] = {"ids": ["n01"], "names": ["n01"]}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json does not list shards of images.*another type"):
        read_batches(datamodule(shards, tmp_path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"{", "does not list shards"),
        (b"[]", "does not list shards"),
        ({"chunks": None}, "lists no shards"),
        ({"config": {**CONFIG, "format": "mds"}}, "another type"),
        ({"config": {**CONFIG, "data_spec": CONFIG["data_spec"].replace("tuple", "list")}}, "another type"),
        ({"chunks": [{"filename": "../chunk-0-0.bin", "chunk_size": 60, "chunk_bytes": 9}]}, "other names"),
        ({"chunks": [{"filename": "chunk-0-0.bin", "chunk_size": -1, "chunk_bytes": 9}]}, "size is no number"),
        ({"chunks": [{"filename": "chunk-0-0.bin", "chunk_size": 9}]}, "it has no 'chunk_bytes'"),
        ({"classes": {"ids": ["n01", "n01"], "names": ["a", "b"]}}, "repeats n01"),
        ({"classes": {"ids": [1], "names": ["a"]}}, "a class is no text"),
    ],
)
def test_an_index_of_something_else(change: Any, message: str, shards: Path, tmp_path: Path) -> None:
    path = shards / "train" / "index.json"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=rf"train/index\.json.*{message}"):
        read_batches(datamodule(shards, tmp_path))


def test_an_order_of_something_else(shards: Path, tmp_path: Path) -> None:
    path = shards / "train" / "order.npy"
    for order in (np.zeros(60, np.uint32), np.arange(59), np.array([Bomb(tmp_path / "trace")])):
        np.save(path, order, allow_pickle=True)
        with pytest.raises(UserError, match=r"Cannot read .*train/order\.npy"):
            read_batches(datamodule(shards, tmp_path))
    path.write_bytes(b"\x93NUMPY\x01\x00\x09\x00{'a': (\n\n")  # which numpy takes apart as Python's text
    with pytest.raises(UserError, match=r"Cannot read .*train/order\.npy"):
        read_batches(datamodule(shards, tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"train/order\.npy: it is missing"):
        read_batches(datamodule(shards, tmp_path))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nonsense://bucket/data", "nonsense://bucket/data/train/index.json cannot be read: Protocol not known"),
        ("memory://nowhere", "memory://nowhere/train holds no index.json"),
        ("http://127.0.0.1:1/data", "http://127.0.0.1:1/data/train/index.json cannot be read"),
        ("file:///nowhere", "file:///nowhere/train holds no index.json"),
    ],
)
def test_places_without_shards(root: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_batches(datamodule(root, tmp_path))


def test_settings_that_do_not_fit(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not in the class list: n03\. The class list is n01, n02"):
        read_batches(datamodule(written, tmp_path, class_names=["n01", "n02"]))
    with pytest.raises(UserError, match=r"data\.val_list is list\.txt, but .*/val holds shards"):
        read_batches(datamodule(written, tmp_path, val_list="list.txt"))
    for wrong in ({"window": -1}, {"cache_gb": 0.0}):
        with pytest.raises(UserError, match=rf"data\.stream\.{next(iter(wrong))}"):
            Streaming(**wrong)


def test_shards_that_are_being_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.partial").mkdir()
    with pytest.raises(UserError, match=r"train is being written: run `swinv2-tasks data optimize` again"):
        read_batches(datamodule(tmp_path, tmp_path))


def test_the_extra_is_asked_for(
    folder: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(UserError, match=r"need litdata.*pip install 'swinv2-tasks\[stream\]'"):
        read_batches(datamodule(written, tmp_path))
    assert main(["data", "optimize", "imagenet", str(folder), str(tmp_path / "out"), "--workers=1"]) == 1
    assert "pip install 'swinv2-tasks[stream]'" in capsys.readouterr().err


@pytest.mark.slow
def test_plain_folders_do_without_it(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['litdata'] = None; from swinv2_tasks.datamodules import ImageNetDataModule as M; "
        f"data = M({str(folder)!r}, image_size=32, batch_size=8, num_workers=0); data.setup('fit'); "
        "next(iter(data.train_dataloader()))"
    )
    environment = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_datasets_can_be_sent_to_spawned_workers(written: Path, tmp_path: Path) -> None:
    data = datamodule(written, tmp_path)
    data.setup("fit")
    assert data.val_dataset is not None
    before = data.val_dataset[2]["image"]
    copy = pickle.loads(pickle.dumps(data.val_dataset))
    assert torch.equal(copy[2]["image"], before)


def checksum(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.*")))).hexdigest()


def test_reading_changes_nothing(shards: Path, tmp_path: Path) -> None:
    before = checksum(shards), sorted(shards.rglob("*"))
    read_batches(datamodule(shards, tmp_path))
    assert (checksum(shards), sorted(shards.rglob("*"))) == before
