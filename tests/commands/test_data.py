"""Checking datasets that lie on disk, and writing them into shards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swinv2_tasks.cli.main import main
from swinv2_tasks.commands import data as data_command
from swinv2_tasks.commands.data import decoding_fault, find_faults
from swinv2_tasks.datamodules import ImageNetDataModule, KineticsDataModule
from swinv2_tasks.datamodules.kinetics import VideoFiles, ViewCounts
from swinv2_tasks.datamodules.readers.video_verdicts import Findings, Verdict, VerdictFile, look_up
from swinv2_tasks.datamodules.transforms.video import FrameSampling
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from tests.helpers import motions, tiny
from tests.helpers.broken_files import cut_off, scramble
from tests.helpers.films import spoil_last_key_frame, write_film, write_sound
from tests.helpers.processes import is_alive, start, wait_for
from tests.helpers.tiny import write_images


@pytest.fixture
def films(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for label in ("air drumming", "zumba"):
        write_film(root / "train" / label / "good.mp4")
        write_film(root / "val" / label / "good.mkv")
    cut_off(write_film(root / "train" / "zumba" / "cut.mp4"))
    cut_off(write_film(root / "train" / "zumba" / "cut.mkv", frames=40), 0.6)
    scramble(write_film(root / "train" / "zumba" / "scrambled.mp4", options={"movflags": "faststart"}), 0.7)
    (root / "val" / "zumba" / "empty.mp4").touch()
    write_sound(root / "val" / "zumba" / "sound.mp4")
    return root


def test_faulty_videos_are_listed_and_stop_no_others(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "kinetics", str(films), "--output", str(tmp_path / "out"), "--workers", "2"]) == 1
    output, errors = capsys.readouterr()
    assert f"5 of 9 videos are faulty: {tmp_path / 'out' / 'faulty_videos.csv'}" in errors
    assert "train: 2 of 5 videos decode fully" in output and "val: 2 of 4 videos decode fully" in output
    reasons = {Path(row["path"]).name: row["reason"] for row in rows(tmp_path / "out" / "faulty_videos.csv")}
    assert reasons.keys() == {"cut.mp4", "cut.mkv", "scrambled.mp4", "empty.mp4", "sound.mp4"}
    assert "cut off" in reasons["cut.mp4"] and reasons["empty.mp4"] == "the file is empty (0 bytes)"
    assert "only sound" in reasons["sound.mp4"] and "cut off" in reasons["cut.mkv"]
    assert "corrupt" in reasons["scrambled.mp4"]


@pytest.mark.slow
def test_the_clean_lists_are_read_by_the_datamodule(films: Path) -> None:
    assert main(["data", "check", "kinetics", str(films)]) == 1
    module = KineticsDataModule(
        str(films),
        32,
        2,
        0,
        sampling=FrameSampling(4),
        files=VideoFiles(train_list="train_clean.txt", val_list="val_clean.txt"),
        views=ViewCounts(test=(1, 1)),
    )
    module.setup("fit")
    assert module.class_names == ["air drumming", "zumba"]
    assert [path for path, _ in module.videos("train")] == [
        str(films / "train" / label / "good.mp4") for label in module.class_names
    ]
    assert next(iter(module.train_dataloader()))["clip"].shape == (2, 1, 3, 4, 32, 32)
    assert len(list(module.val_dataloader())) == 1


def test_every_shared_clip_decodes(real_data: Path) -> None:
    for path in sorted((real_data / "videos" / "clips").iterdir()):
        assert decoding_fault(str(path)) is None


def crash(path: str) -> str | None:
    """In place of a decoder."""
    if "cut" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "empty" in path:
        time.sleep(60)
    return None


@pytest.mark.slow
def test_crashes_and_hangs_are_reported_of_their_file(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_command, "decoding_fault", crash)
    paths = [str(path) for path in sorted(films.rglob("*.mp4"))]
    reasons = {
        Path(path).name: verdict for path, verdict in find_faults(paths, workers=2, seconds=20) if verdict.reason
    }
    assert reasons == {
        "cut.mp4": Verdict("its decoder crashed", is_final=False),
        "empty.mp4": Verdict("its decoder did not end within 20 s", is_final=False),
    }


@pytest.mark.slow
def test_the_start_of_a_process_takes_none_of_a_videos_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need longer to start than a video may take to decode."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(4)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    film = write_film(tmp_path / "film.mp4", frames=4)
    assert list(find_faults([str(film)], seconds=4)) == [(str(film), Verdict(""))]


def check(root: Path, *options: str) -> int:
    return main(["data", "check", "kinetics", str(root), "--workers", "2", *options])


def rows(table: Path) -> list[dict[str, str]]:
    return read_table(table)


def record_decoding(path: str) -> str | None:
    """In place of a decoder, to see what is decoded."""
    return "decoded"


@pytest.mark.slow
def test_a_verdict_holds_as_long_as_the_file_is_the_same(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(films) == 1
    before = {row["path"]: row["reason"] for row in rows(films / "faulty_videos.csv")}
    mended, spoiled = films / "val" / "zumba" / "empty.mp4", films / "val" / "zumba" / "good.mkv"
    write_film(mended)
    time_before = spoiled.stat().st_mtime_ns
    spoiled.write_bytes(bytes(spoiled.stat().st_size))
    os.utime(spoiled, ns=(time_before, time_before))  # as copying tools do
    capsys.readouterr()

    monkeypatch.setattr(data_command, "decoding_fault", record_decoding)
    assert check(films) == 1
    assert "7 of 9 videos have not changed since they were checked" in capsys.readouterr().out
    after = {row["path"]: row["reason"] for row in rows(films / "faulty_videos.csv")}
    assert after == {**before, str(mended): "decoded", str(spoiled): "decoded"}


def test_crashes_and_hangs_are_tried_again(films: Path, tmp_path: Path) -> None:
    """They may be for want of memory, or on a machine that was busy."""
    path, table = str(films / "train" / "zumba" / "good.mp4"), tmp_path / "checked.csv"
    for verdict in (Verdict("its decoder crashed", is_final=False), Verdict("bad")):
        with VerdictFile(table) as verdicts:
            verdicts.add(path, verdict)
        assert VerdictFile(table).find(path) == verdict
        assert VerdictFile(table).is_settled(path) == verdict.is_final
    assert "its decoder crashed" not in table.read_text()


def test_a_table_of_verdicts_that_was_cut_off_loses_one_row(films: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(films.rglob("good.*"))]
    with VerdictFile(tmp_path / "checked.csv") as verdicts:
        for path in paths:
            verdicts.add(path, Verdict("", True))
    content = (tmp_path / "checked.csv").read_bytes()
    (tmp_path / "checked.csv").write_bytes(content[:-30])
    with VerdictFile(tmp_path / "checked.csv") as verdicts:
        assert [verdicts.find(path) for path in paths] == [*[Verdict("")] * 3, None]
        verdicts.add(paths[-1], Verdict(""))
    assert (tmp_path / "checked.csv").read_bytes() == content


@pytest.fixture
def many_films(tmp_path: Path) -> Path:
    """A thousand names of one video, and of one that is cut off."""
    root = tmp_path / "many"
    good, bad = write_film(root / "good.mp4"), cut_off(write_film(root / "bad.mp4"))
    (root / "train" / "zumba").mkdir(parents=True)
    for k in range(1000):
        os.link(bad if k % 10 == 0 else good, root / "train" / "zumba" / f"{k}.mp4")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_check_that_is_stopped_keeps_its_verdicts_and_resumes(number: signal.Signals, many_films: Path) -> None:
    arguments, table = ["data", "check", "kinetics", ".", "--workers=2"], many_films / "checked_videos.csv"
    running = start(arguments, many_films)
    wait_for(lambda: table.exists() and table.read_text().count("\n") > 20, seconds=120)
    group = os.getpgid(running.process.pid or 0)
    os.killpg(group, number) if number == signal.SIGINT else running.signal(number)  # Ctrl-C reaches the whole group
    ended = running.wait()
    assert ended.status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in ended.errors
    if number != signal.SIGKILL:
        assert "of 1000 videos are checked" in ended.errors and "The same command resumes" in ended.errors
    assert not list(many_films.glob("*clean.txt"))
    begun = table.read_text()
    assert 20 < begun.count("\n") < 1000
    assert "crashed" not in begun
    faulty = [row["path"] for row in rows(table) if row["reason"]]
    with pytest.raises(UserError, match=f"{len(faulty)} of 1000 train videos cannot be read"):
        KineticsDataModule(str(many_films)).setup("fit")

    wait_for(lambda: not is_alive(group), 20)  # no process is left behind
    again = start(arguments, many_films).wait(300)
    assert again.status == 1
    assert f"{begun.count(chr(10)) - 1} of 1000 videos have not changed since" in again.output
    assert table.read_text().startswith(begun)
    assert len(rows(many_films / "faulty_videos.csv")) == 100
    assert len((many_films / "train_clean.txt").read_text().splitlines()) == 900


@pytest.fixture
def long_films(tmp_path: Path) -> Path:
    """Two classes of sound films of 40 frames, of which clips are of 4: evaluation reads frames 18 to 21."""
    root = tmp_path / "long films"
    for split, number in (("train", 2), ("val", 2)):
        for label in ("air drumming", "zumba"):
            for k in range(number):
                write_film(root / split / label / f"{k}.mp4", frames=40)
    return root


@pytest.fixture
def arguments(long_films: Path, tmp_path: Path) -> list[str]:
    """Those of every command on these films; a tiny classifier."""
    changes = {
        "files": {"train_list": None, "val_list": None},
        "sampling": {"frames": 4},
        "batch_size": 2,
        "views": {"test": [1, 1]},
    }
    config = motions.write_config(
        tmp_path / "config.yaml", long_films, trainer={"max_epochs": 1}, data={"init_args": changes}
    )
    return [f"--config={config}", f"--runs={tmp_path / 'runs'}"]


@pytest.mark.slow
def test_what_check_calls_faulty_stops_every_command_or_is_skipped(
    long_films: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments]) == 0
    noted = f"8 of 8 videos have not been decoded in full, .* data check kinetics '{long_films}'"
    assert re.search(noted, capsys.readouterr().out)
    evaluate = [*arguments, f"--ckpt_path={tmp_path / 'runs' / 'motions' / '0' / 'checkpoints' / 'last.ckpt'}"]
    predict = ["predict", *evaluate, f"--data.source={long_films / 'val'}", f"--output={tmp_path / 'out'}"]
    predict += ["--data.views.test=[1,3]", "--data.views.per_sample=1"]  # three samples of a video
    spoiled = [spoil_last_key_frame(long_films / split / "zumba" / "1.mp4") for split in ("train", "val")]
    assert main(["validate", *evaluate]) == 0  # the clip that is read is sound, and nobody has looked further
    assert check(long_films, "--workers=1") == 1
    listed = {row["path"]: row["reason"] for row in rows(long_films / "faulty_videos.csv")}
    assert listed.keys() == {str(path) for path in spoiled}

    for command, path in (("fit", spoiled[0]), ("validate", spoiled[1]), ("test", spoiled[1])):
        capsys.readouterr()
        assert main([command, *(arguments if command == "fit" else evaluate)]) == 1
        errors = capsys.readouterr().err
        assert f"{path}: {listed[str(path)]} (found by `data check`, see {long_films / 'checked_videos.csv'})" in errors
        assert "data.faulty_samples=skip" in errors and "Traceback" not in errors
    assert main([*predict, "--data.faulty_samples=error"]) == 1
    assert f"Cannot read the video {spoiled[1]}: {listed[str(spoiled[1])]}" in capsys.readouterr().err

    skip = "--data.faulty_samples=skip"
    assert main(["fit", *arguments, skip]) == 0
    printed = capsys.readouterr()
    for path in spoiled:
        assert printed.err.count(f"skipped: Cannot read the video {path}: {listed[str(path)]}") == 1
    assert "have not been decoded in full" not in printed.out
    for command in ("validate", "test"):
        assert main([command, *evaluate, skip]) == 0
        assert f"the scores are of 3 of 4 samples; left out, since they could not be read: {spoiled[1]}" in (
            capsys.readouterr().err
        )
    assert main(predict) == 1
    errors = {row["path"]: row["error"] for row in rows(tmp_path / "out" / "predictions.csv")}
    assert len(errors) == 4 and [path for path, error in errors.items() if error] == [str(spoiled[1])]
    assert listed[str(spoiled[1])] in errors[str(spoiled[1])]
    assert main([*predict, "--data.check_source=false"]) == 0


def check_in_this_process(root: Path) -> None:
    """The verdicts of a check, without the processes that it takes."""
    with VerdictFile(root / "checked_videos.csv") as verdicts:
        for path in sorted(root.rglob("*.mp4")):
            verdicts.add(str(path), Verdict(decoding_fault(str(path)) or ""))


def test_a_changed_video_is_not_judged_by_an_old_verdict(long_films: Path) -> None:
    mended = long_films / "val" / "zumba" / "1.mp4"
    whole = mended.read_bytes()
    spoil_last_key_frame(mended)
    check_in_this_process(long_films)
    assert look_up([str(mended)], [long_films]).faulty.keys() == {str(mended)}
    state = mended.stat()
    mended.write_bytes(whole)
    assert mended.stat().st_size == state.st_size
    os.utime(mended, ns=(state.st_mtime_ns, state.st_mtime_ns))  # as copying tools do
    spoiled = spoil_last_key_frame(long_films / "val" / "zumba" / "0.mp4")
    assert look_up([str(mended), str(spoiled)], [long_films]) == Findings(missing=[], faulty={}, unchecked=2)
    module = KineticsDataModule(str(long_films), 32, 2, 0, sampling=FrameSampling(4, 1))
    module.setup("validate")
    assert len(list(module.val_dataloader())) == 2


def test_verdicts_hold_where_the_dataset_is_moved_or_reached_otherwise(long_films: Path, tmp_path: Path) -> None:
    spoil_last_key_frame(long_films / "val" / "zumba" / "1.mp4")
    check_in_this_process(long_films)
    (tmp_path / "link").symlink_to(long_films)
    moved = long_films.rename(tmp_path / "moved")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(moved)
    for root in (moved, tmp_path / "link"):
        with pytest.raises(
            UserError, match=rf"1 of 4 val videos cannot be read: {root}/val/zumba/1\.mp4: its frame 34"
        ):
            KineticsDataModule(str(root), 32, sampling=FrameSampling(4)).setup("validate")


@pytest.mark.slow
def test_verdicts_lie_with_the_data_or_beside_the_lists(
    long_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled, out = spoil_last_key_frame(long_films / "val" / "zumba" / "1.mp4"), tmp_path / "out"
    assert check(long_films, "--workers=1", f"--output={out}") == 1
    assert (long_films / "checked_videos.csv").is_file() and not (out / "checked_videos.csv").exists()
    with VerdictFile(out / "checked_videos.csv") as verdicts:
        verdicts.add(str(spoiled), Verdict("it is bad"))
    assert "it is bad" not in look_up([str(spoiled)], [long_films, out]).faulty[str(spoiled)]
    (long_films / "checked_videos.csv").unlink()
    (out / "val_clean.txt").write_text("val/zumba/1.mp4\tzumba\nval/zumba/0.mp4\tzumba\n")
    module = KineticsDataModule(
        str(long_films), 32, sampling=FrameSampling(4), files=VideoFiles(val_list=str(out / "val_clean.txt"))
    )
    with pytest.raises(UserError, match=r"zumba/1\.mp4: it is bad.*data\.files\.val_list=val_clean\.txt"):
        module.setup("validate")


@pytest.mark.slow
def test_verdicts_on_data_that_cannot_be_written_to(
    long_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tests may run as root, who may write anywhere: a folder stands where it is tried out.
    (long_films / f".proof.{os.getpid()}").mkdir()
    assert check(long_films, "--workers=1", f"--output={tmp_path / 'out'}") == 1  # all films are the same
    assert f"So verdicts go to {tmp_path / 'out' / 'checked_videos.csv'}" in capsys.readouterr().out
    assert len(rows(tmp_path / "out" / "checked_videos.csv")) == 8


def test_a_check_that_is_stopped_is_gone_by(long_films: Path) -> None:
    """What it has found until then, a crash among it."""
    sound, spoiled, crashing = (str(long_films / "val" / label) for label in ("zumba/0.mp4", "zumba/1.mp4", "x.mp4"))
    write_film(Path(crashing), frames=3)
    with (
        pytest.raises(KeyboardInterrupt),
        VerdictFile(long_films / "checked_videos.csv") as verdicts,
    ):
        verdicts.add(sound, Verdict(""))
        verdicts.add(spoiled, Verdict("its frame 34 is corrupt"))
        verdicts.add(crashing, Verdict("its decoder crashed", is_final=False))
        raise KeyboardInterrupt
    other = str(long_films / "val" / "air drumming" / "0.mp4")
    report = look_up([sound, spoiled, crashing, other, "nowhere.mp4"], [long_films])
    assert list(report.faulty) == [spoiled, crashing] and report.missing == ["nowhere.mp4"] and report.unchecked == 1


ODD_NAMES = [
    b"caf\xe9.mp4",
    b"$x_1$ [red]bold[red].mp4",
    b"\x1b[31mred.mp4",
    b"a, b: c.mp4",
    b"'quoted'.mp4",
    b"x" * 251 + b".mp4",
]
"""Names of files: Latin-1, formulas and markup, control sequences, what lists and messages are split by."""


@pytest.mark.slow
def test_videos_of_any_name_are_checked_listed_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "train" / "zumba"
    folder.mkdir(parents=True)
    good, bad = write_film(tmp_path / "good.mp4"), cut_off(write_film(tmp_path / "bad.mp4"))
    for name in (*ODD_NAMES, b"line\nbreak.mp4"):
        os.link(good, folder / os.fsdecode(name))
    os.link(bad, folder / os.fsdecode(b"b\xe4d\n.mp4"))
    plain = write_film(tmp_path / "train" / "air drumming" / "good.mp4")
    assert check(tmp_path) == 1
    output, errors = capsys.readouterr()
    assert "train: 7 of 9 videos decode fully" in output and "2 of 9 videos are faulty" in errors
    assert r"b\xe4d\n.mp4: " in output and r"line\nbreak.mp4: it decodes, but no list can hold its name" in output
    assert all(line.isprintable() for line in output.splitlines())
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "faulty_videos.csv")}
    assert reasons.keys() == {str(folder / os.fsdecode(name)) for name in (b"b\xe4d\n.mp4", b"line\nbreak.mp4")}
    module = KineticsDataModule(
        str(tmp_path),
        32,
        2,
        0,
        sampling=FrameSampling(4),
        files=VideoFiles(train_list="train_clean.txt", val_list="train_clean.txt"),
        views=ViewCounts(test=(1, 1)),
    )
    module.setup("fit")
    odd = {str(folder / os.fsdecode(name)) for name in ODD_NAMES}
    assert {path for path, _ in module.videos("train")} == {str(plain), *odd}
    assert len(list(module.train_dataloader())) == 3


@pytest.mark.parametrize("folder", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_written_to_is_reported_before_the_work(
    folder: str, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(data_command, "decoding_fault", record_decoding)
    assert check(films, f"--output={tmp_path / folder}") == 1
    output, errors = capsys.readouterr()
    assert f"cannot write in {tmp_path / folder} (--output)" in errors and "decode fully" not in output


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "kinetics", str(tmp_path)]) == 1
    assert "holds nothing, which is none of the layouts known" in capsys.readouterr().err
    assert main(["data", "check", "kinetics", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["data", "check", "kinetics", str(tmp_path), "--workers", "0"]) == 1
    assert "workers is 0" in capsys.readouterr().err


# ---- images into shards


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset of 60 and 12 small images, that the tests may spoil."""
    return write_images(tmp_path / "pictures", train=20)


def optimize(root: Path, out: Path, *options: str) -> int:
    return main(["data", "optimize", "imagenet", str(root), str(out), "--workers=1", "--shard_mb=0.01", *options])


def names(root: Path, split: str) -> list[str]:
    """The samples of a split, in order: split, class and file."""
    data = ImageNetDataModule(str(root), image_size=32, batch_size=1, num_workers=0)
    data.setup("fit")
    dataset: Any = data.train_dataset if split == "train" else data.val_dataset
    return ["/".join(Path(dataset.sample_id(index)).parts[-3:]) for index in range(len(dataset))]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what it holds."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(Path(path).relative_to(folder)): data for path, (_, data) in state(folder).items()}


def test_optimized_images_are_reported_and_written_once(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert optimize(pictures, out) == 0
    printed = capsys.readouterr()
    shards = len(list((out / "train").glob("*.bin")))
    assert f"train: 60 of 60 images in {shards} shards: {out / 'train'}" in printed.out and shards > 5
    assert "val: 12 of 12 images" in printed.out and printed.err == ""
    assert {path.name for path in (out / "val").iterdir()} >= {"index.json", "order.npy", "chunk-0-0.bin"}
    before = state(out)
    assert optimize(pictures, out) == 0
    assert state(out) == before
    assert "train: 60 of 60 images" in capsys.readouterr().out


def alter_png(path: Path) -> None:
    """Leaves a PNG of which all can be decoded; a checksum no longer fits."""
    Image.open(path).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[-13] ^= 1
    path.write_bytes(content)


def truncate_jpeg(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("corrupt", "words"), [(alter_png, "the checksum of its part 'IDAT'"), (truncate_jpeg, "trunc")]
)
def test_a_corrupt_image_is_refused_by_every_command(
    corrupt: Callable[[Path], None], words: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All read images by one reader, in full."""
    config = tiny.write_config(tmp_path / "config.yaml", pictures, trainer={"max_epochs": 1})
    arguments = [f"--config={config}", f"--runs={tmp_path / 'runs'}"]
    assert main(["fit", *arguments]) == 0
    weights = tmp_path / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt"
    path = pictures / "val" / "n01" / "n01_1.jpg"
    corrupt(path)
    reasons = set()
    for command in (
        ["fit", *arguments],
        ["validate", *arguments, f"--ckpt_path={weights}"],
        ["predict", f"--ckpt_path={weights}", f"--data.source={path}", f"--output={tmp_path / 'predictions'}"],
        ["data", "optimize", "imagenet", str(pictures), str(tmp_path / "shards"), "--workers=1"],
    ):
        capsys.readouterr()
        assert main(command) == 1
        output = "".join(capsys.readouterr())
        match = re.search(rf"Cannot read the image {path}: (.*?)\. Replace", output)
        assert match is not None, output
        reasons.add(match[1])
    assert len(reasons) == 1 and words in reasons.pop()


@pytest.mark.slow
def test_several_workers_write_the_same(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "n02" / "n02_3.jpg").write_bytes(b"no picture")
    for workers in (1, 3):
        assert optimize(pictures, tmp_path / str(workers), f"--workers={workers}", "--skip_faulty=true") == 0
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_an_unreadable_image_is_named_and_may_be_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "out", pictures / "train" / "n02" / "n02_3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    empty = pictures / "val" / "n01" / "n01_1.jpg"
    content_of_empty = empty.read_bytes()
    empty.write_bytes(b"")
    assert optimize(pictures, out) == 1
    output, errors = capsys.readouterr()
    assert "2 images cannot be read" in errors and "--skip_faulty" in errors and "Traceback" not in errors
    assert f"faulty: train/n02/n02_3.jpg: Cannot read the image {broken}" in output
    assert f"faulty: val/n01/n01_1.jpg: Cannot read the image {empty}" in output
    assert [row["image"] for row in rows(out / "faulty_images.csv")] == ["train/n02/n02_3.jpg", "val/n01/n01_1.jpg"]
    assert not (out / "train").exists() and not (out / "val").exists()
    empty.write_bytes(content_of_empty)
    finished = state(out)
    planned = json.loads((out / "train.partial" / "plan.jsonl").read_text().splitlines()[0])["bounds"]

    def is_train_shard(path: str) -> bool:
        return path.endswith(".bin") and "/train.partial/" in path

    assert len(list(filter(is_train_shard, finished))) == len(planned) - 2  # shards, and one of them is missing
    assert optimize(pictures, out, "--skip_faulty=true") == 0
    output = capsys.readouterr().out
    assert "train: 59 of 60 images" in output and "left out: train/n02/n02_3.jpg: Cannot read the image" in output
    entries = {Path(path).name: entry for path, entry in state(out).items() if "/train/" in path}
    assert all(entries[Path(path).name] == entry for path, entry in finished.items() if is_train_shard(path))
    for split in ("train", "val"):
        assert names(out, split) == [name for name in names(pictures, split) if name != "train/n02/n02_3.jpg"]
    assert optimize(pictures, out) == 1
    assert "written without 1 images" in capsys.readouterr().err


def test_an_image_that_was_mended_meanwhile(pictures: Path, tmp_path: Path) -> None:
    broken = pictures / "train" / "n02" / "n02_3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    assert optimize(pictures, tmp_path / "out") == 1
    broken.write_bytes(whole)
    assert optimize(pictures, tmp_path / "out") == 0
    assert names(tmp_path / "out", "train") == names(pictures, "train")


def test_nothing_but_unreadable_images(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (pictures / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    assert optimize(pictures, tmp_path / "out", "--skip_faulty=true") == 1
    assert "No image for" in capsys.readouterr().err and not (tmp_path / "out" / "val").exists()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_writing_resumes(workers: int, tmp_path: Path) -> None:
    pictures, out = write_images(tmp_path / "pictures", train=150), tmp_path / "out"
    arguments = ["data", "optimize", "imagenet", "pictures", "out", "--shard_mb=0.01", f"--workers={workers}"]
    running = start(arguments, tmp_path)
    plan = out / "train.partial" / "plan.jsonl"
    wait_for(lambda: plan.exists() and plan.read_text().count("\n") > 4, seconds=300)
    running.signal(signal.SIGKILL)
    assert running.wait().status == -9
    assert not (out / "train").exists()
    numbers = [json.loads(line)["number"] for line in plan.read_text().splitlines()[1:]]
    finished = {f"chunk-0-{k}.bin": (plan.parent / f"chunk-0-{k}.bin").stat().st_mtime_ns for k in numbers}
    victim = f"chunk-0-{numbers[1]}.bin"
    (plan.parent / victim).write_bytes(b"half")  # as after a power failure
    with plan.open("a") as file:
        file.write('{"number": 9')

    assert start(arguments, tmp_path).wait(300).status == 0
    again = {name: (out / "train" / name).stat().st_mtime_ns for name in finished}
    assert [name for name in finished if again[name] != finished[name]] == [victim]
    assert optimize(pictures, tmp_path / "straight") == 0
    assert content(out) == content(tmp_path / "straight")


@pytest.mark.slow
def test_a_full_disk(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond 5 kB, so a shard cannot be written; with space again, it resumes."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
    command = limit + "from swinv2_tasks.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["data", "optimize", "imagenet", str(pictures), str(tmp_path / "out"), "--workers=1", "--shard_mb=0.01"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", command, *arguments], env=environment).returncode == 1
    errors = capfd.readouterr().err
    assert "chunk-0-0.bin: cannot be written" in errors and "MiB are free" in errors and "Traceback" not in errors
    assert main(arguments) == 0
    assert not list((tmp_path / "out").rglob(".chunk*"))


def test_shards_of_other_images(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert optimize(pictures, out) == 0
    (pictures / "train" / "n01" / "n01_0.jpg").rename(pictures / "train" / "n02" / "more.jpg")
    assert optimize(pictures, out) == 1
    assert f"{out / 'train'} holds shards of other images" in capsys.readouterr().err
    assert optimize(pictures, pictures) == 1
    assert f"{pictures / 'train'} exists, but not as a folder of such shards" in capsys.readouterr().err


def test_mistakes_of_optimizing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root, out, option, message in (
        (pictures, tmp_path / "out", "--workers=0", "workers is 0"),
        (pictures, tmp_path / "out", "--shard_mb=0", "shard_mb 0"),
        (pictures, tmp_path / "out", "--shard_mb=5000", "shard_mb 5000"),
        (tmp_path / "nowhere", tmp_path / "out", "--workers=1", "nowhere does not exist"),
        (pictures, pictures / "classes.csv", "--workers=1", "classes.csv (output): File exists"),
        (pictures, tmp_path / "out", f"--val_list={tmp_path / 'list.txt'}", "list.txt: No such file"),
    ):
        assert optimize(root, out, option) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
