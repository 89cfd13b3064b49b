"""Reading videos: the right frames, beside PyAV's, and one clear message for what cannot be read."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from swinv2_tasks.datamodules.readers.video_packets import index_video
from swinv2_tasks.datamodules.readers.videos import Video, find_corruption, list_videos
from swinv2_tasks.errors import UserError
from tests.helpers import video_matrix
from tests.helpers.broken_files import cut_off, scramble
from tests.helpers.films import count_as, number_of, picture, rotate, write_film, write_sound


def frames_of(path: Path, indices: Any) -> np.ndarray:
    with Video(path) as video:
        return video.frames(indices)


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def pyav_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and pixels of all frames, in the order of their times."""
    with av.open(str(path)) as file:
        return [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def test_frames_come_by_number_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    indices = [19, 0, 7, 7, 6, 5, 13]
    frames = frames_of(path, indices)
    assert frames.dtype == np.uint8 and frames.shape == (7, 48, 64, 3)
    assert numbers(frames) == indices
    assert np.abs(frames[1].astype(int) - picture(0)).mean() < 3  # RGB, not BGR, and the right way up
    with Video(path) as video:
        assert len(video) == 20


def test_uneven_times_and_a_late_start_change_no_number(tmp_path: Path) -> None:
    times = [700 + 40 * n + (300 if n > 8 else 0) + 7 * (n % 3) for n in range(20)]
    for end in ("mkv", "mp4"):
        path = write_film(tmp_path / f"film.{end}", times=times)
        assert numbers(frames_of(path, range(20))) == list(range(20))
        assert numbers(frames_of(path, [15, 3, 11])) == [15, 3, 11]


def test_headers_that_lie_about_the_number_of_frames(tmp_path: Path) -> None:
    for claimed in (1000, 3):
        path = count_as(write_film(tmp_path / f"film{claimed}.avi", codec="mpeg4"), claimed)
        with Video(path) as video:
            assert len(video) == 20
        assert numbers(frames_of(path, [19, 2])) == [19, 2]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotation_that_the_file_asks_for_is_applied(turns: int, tmp_path: Path) -> None:
    path = rotate(write_film(tmp_path / "film.mp4"), turns)
    expected = np.rot90(picture(4), -turns)
    frame = frames_of(path, [4])[0]
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("width", [16, 24, 48, 70, 72, 100])
def test_narrow_videos_keep_their_three_channels(width: int, tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", frames=5, size=(40, width))
    frame = frames_of(path, [3])[0]
    assert frame.shape == (40, width, 3)
    assert np.abs(frame.astype(int) - picture(3, 40, width)).mean() < 4


@pytest.mark.parametrize(
    ("folder", "number"), [("videos/clips", 4), pytest.param("videos/asl20", 20, marks=pytest.mark.slow)]
)
def test_every_shared_clip_gives_the_frames_of_pyav_by_time(folder: str, number: int, real_data: Path) -> None:
    files = sorted((real_data / folder).iterdir())
    assert len(files) == number
    rng = np.random.default_rng(0)
    for path in files:
        expected = pyav_frames(path)
        with Video(path) as video:
            assert len(video) == len(expected)
            # The n-th by time is the n-th frame: avi files state times in the order of decoding.
            chosen = np.concatenate([[0, len(expected) - 1], rng.integers(len(expected), size=6)])
            frames = video.frames(chosen)
        times = [time for time, _ in expected]
        if path.suffix != ".avi":
            assert times == sorted(times)
        for index, frame in zip(chosen, frames, strict=True):
            nearest = min(range(len(times)), key=lambda k, index=index: abs(times[k] - times[index]))
            expected_index = index if path.suffix == ".avi" else nearest
            assert np.abs(frame.astype(int) - expected[expected_index][1]).mean() < 1, path


def rename_codec(path: Path, code: bytes, before: bytes = b"avc1") -> Path:
    """Lets a file say that its pictures are in another codec."""
    head, _, rest = path.read_bytes().rpartition(before)
    path.write_bytes(head + code + rest)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.mp4": (lambda path: None, "does not exist"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty"),
    "folder.mp4": (lambda path: path.mkdir(), "it is a folder"),
    "text.mp4": (lambda path: path.write_text("no video " * 100), "no video of a known kind, or cut off"),
    "cut.mp4": (lambda path: cut_off(write_film(path)), r"it is cut off: [\d,]+ of at least [\d,]+ bytes"),
    "sound.mp4": (write_sound, "only sound"),
    "recoded.mp4": (
        lambda path: rename_codec(write_film(path), b"evc1"),
        r"its pictures are EVC \(MPEG-5\), for which there is no decoder.*convert it to H\.264 in mp4",
    ),
    "secret.mp4": (lambda path: rename_codec(write_film(path), b"qqqq"), "its pictures are qqqq, for which"),
    "secret.mkv": (
        lambda path: rename_codec(write_film(path), b"V_MPEG9", b"V_MPEG4"),
        "its pictures are V_MPEG9/ISO/AVC, for which",
    ),
    "broadcast.ts": (lambda path: write_film(path, codec="libsvtav1"), r"a codec that the file does not name \(AV1"),
    "early_index.mp4": (
        lambda path: cut_off(write_film(path, options={"movflags": "faststart"}), 0.6),
        r"it is cut off: [\d,]+ of at least [\d,]+ bytes",
    ),
    "scrambled.mp4": (
        lambda path: scramble(write_film(path, options={"movflags": "faststart"}), 0.7),
        "its (frame|packet) [0-9]+ is corrupt",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_reported_with_its_path(name: str, tmp_path: Path) -> None:
    write, reason = BROKEN[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=reason) as caught:
        frames_of(path, range(20))
    assert str(path) in str(caught.value) and "Replace the file" in str(caught.value)


def assert_reads_as_decoded(path: Path, decoder: Any = "auto", reads: int = 12) -> None:
    """Single reads in random order, clips and segments: every frame is that of sequential decoding."""
    expected = [frame for _, frame in pyav_frames(path)]
    draw = np.random.default_rng(len(expected))
    with Video(path, decoder) as video:
        assert len(video) == len(expected), path.name
        requests = [np.array([number]) for number in draw.permutation(len(expected))[:reads]]
        starts = draw.integers(0, max(1, len(expected) - 20), 3)
        requests += [np.arange(start, min(start + 20, len(expected)), 2) for start in starts]
        requests.append(((np.arange(8) + draw.random(8)) * len(expected) / 8).astype(int))
        for numbers in requests:
            for number, frame in zip(numbers, video.frames(numbers), strict=True):
                difference = np.abs(frame.astype(int) - expected[number])
                assert difference.mean() < 0.5, f"{path.name} {video.decoder}: {number} of {len(expected)}"


def test_every_encoder_of_the_matrix_is_there() -> None:
    assert video_matrix.missing_encoders() == []


FAST_CELLS = [
    video_matrix.Cell("h264", "mp4", 2, False),
    video_matrix.Cell("h264", "mp4", 2, True),
    video_matrix.Cell("h264", "avi", 2, False),
    video_matrix.Cell("h264", "ts", 2, True),
    video_matrix.Cell("hevc", "mkv", 2, True),
    video_matrix.Cell("mpeg4", "avi", 2, True),
    video_matrix.Cell("mpeg2", "mpg", 2, False),
    video_matrix.Cell("wmv2", "wmv", 0, False),
    video_matrix.Cell("vp9", "webm", 2, False),
    video_matrix.Cell("av1", "mp4", 0, False),
]


@pytest.mark.parametrize("cell", FAST_CELLS, ids=lambda cell: cell.name)
def test_frame_k_is_frame_k_of_sequential_decoding(cell: video_matrix.Cell, tmp_path: Path) -> None:
    path = video_matrix.write_cell(tmp_path, cell)
    assert [video_matrix.number_of(frame) for _, frame in pyav_frames(path)] == list(range(75))
    assert_reads_as_decoded(path)
    assert find_corruption(path) is None


@pytest.mark.slow
@pytest.mark.parametrize("cell", video_matrix.all_cells(), ids=lambda cell: cell.name)
def test_the_whole_matrix(cell: video_matrix.Cell, tmp_path: Path) -> None:
    path = video_matrix.write_cell(tmp_path, cell)
    assert_reads_as_decoded(path, reads=40)
    assert find_corruption(path) is None


PROOF_SETTINGS = [
    f"keyint={gop}:min-keyint={least}:scenecut={cuts}:bframes={b}:b-pyramid={pyramid}:open-gop={gaps}:ref={refs}:{extra}"
    for gop, least in ((1, 1), (2, 1), (3, 1), (12, 1), (250, 25))
    for b, pyramid in ((0, 0), (1, 0), (3, 2))
    for gaps in (0, 1)
    for cuts, refs, extra in ((0, 1, "weightp=0"), (40, 4, "intra-refresh=0"))
] + ["keyint=20:intra-refresh=1:bframes=0", "keyint=20:intra-refresh=1:bframes=2:open-gop=1"]


def write_scenes(path: Path, settings: str, frames: int = 60) -> Path:
    """H.264 of pictures that change altogether every 17 frames, so that key frames come off the beat."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.options = {"preset": "veryfast", "x264-params": settings}
        for number in range(frames):
            picture = video_matrix.picture(number)
            picture = np.roll(picture, number // 17 * 40, 0) if number % 17 else 255 - picture
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "every",
    [pytest.param(PROOF_SETTINGS[1::5], id="fifth"), pytest.param(PROOF_SETTINGS, id="one", marks=pytest.mark.slow)],
)
def test_where_packets_prove_decords_seek_right_it_is(every: list[str], tmp_path: Path) -> None:
    """By brute force: x264's structures of all kinds; where the proof holds, decord reads all frames in any order."""
    pytest.importorskip("decord")
    proved = 0
    for number, settings in enumerate(every):
        path = write_scenes(tmp_path / f"{number}.mp4", settings)
        is_proved = index_video(str(path)).decord_seeks
        proved += is_proved
        if is_proved:
            assert_reads_as_decoded(path, "decord", reads=60)
        assert_reads_as_decoded(path)
        if "open-gop=1" in settings and "bframes=3" in settings and "keyint=12" in settings:
            assert not is_proved, settings
        if "open-gop=0" in settings and "keyint=250" in settings:
            assert is_proved, settings
    assert len(every) // 3 <= proved < len(every)


def test_decord_alone_refuses_what_is_not_proved(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = video_matrix.write_cell(tmp_path, video_matrix.Cell("h264", "mp4", 2, True))
    with pytest.raises(UserError, match="may give other frames"):
        Video(path, "decord")
    closed = video_matrix.write_cell(tmp_path, video_matrix.Cell("h264", "mp4", 2, False))
    with Video(closed, "decord") as forced, Video(closed) as default:
        assert (forced.decoder, default.decoder) == ("decord", "pyav")


@pytest.mark.parametrize("matrix", [None, "bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("size", [(48, 64), (50, 70), (54, 98)])
def test_both_decoders_give_the_same_colors(
    matrix: str | None, pixels: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Whatever matrix and range a file states; tolerance: one gray level."""
    pytest.importorskip("decord")
    path = tmp_path / "colors.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.options = {"x264-params": f"colormatrix={matrix}" if matrix else "", "qp": "5"}
        colors = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(colors, format="rgb24")))
        file.mux(stream.encode())
    with Video(path, "decord") as decord, Video(path, "pyav") as pyav:
        difference = np.abs(decord.frames(range(5)).astype(int) - pyav.frames(range(5)))
    assert difference.max() <= 1


@pytest.mark.slow
def test_everything_works_without_decord(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    code = (
        "import sys; sys.modules['decord'] = None\n"
        "from swinv2_tasks.datamodules.readers.videos import Video\n"
        "from swinv2_tasks.errors import UserError\n"
        f"with Video({str(path)!r}) as video: print(len(video), video.decoder, video.frames([5]).shape)\n"
        f"try: Video({str(path)!r}, 'decord')\n"
        "except UserError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[0] == "20 pyav (1, 48, 64, 3)"
    assert "which is not installed" in output


CORRUPTION: dict[str, Callable[[bytearray], bytearray]] = {
    "cut": lambda content: content[: len(content) * 6 // 10],
    "hole": lambda content: content[: len(content) // 2] + bytes(400) + content[len(content) // 2 + 400 :],
    "noise": lambda content: (
        content[: len(content) // 2]
        + np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8).tobytes()
        + content[len(content) // 2 + 400 :]
    ),
}


@pytest.mark.parametrize("corruption", CORRUPTION)
@pytest.mark.parametrize(
    ("codec", "container"),
    [("h264", "mp4"), ("h264", "mkv"), ("mpeg4", "avi"), ("mpeg2", "mpg"), ("mjpeg", "avi")],
)
def test_corruption_is_found_by_reading_as_by_checking(
    codec: str, container: str, corruption: str, tmp_path: Path
) -> None:
    b_frames = 0 if codec == "mjpeg" else 2
    path = video_matrix.write_cell(tmp_path, video_matrix.Cell(codec, container, b_frames, False))
    with Video(path) as video:
        video.frames(range(len(video)))
    path.write_bytes(CORRUPTION[corruption](bytearray(path.read_bytes())))
    assert find_corruption(path) is not None
    with pytest.raises(UserError, match="Cannot read the video"), Video(path) as video:
        for start in range(0, len(video), 10):
            video.frames(range(start, min(start + 10, len(video))))


def test_holes_and_cuts_are_found_whichever_frames_are_wanted(tmp_path: Path) -> None:
    for codec, container in (("h264", "mp4"), ("h264", "mkv"), ("h264", "ts"), ("hevc", "mp4"), ("hevc", "mkv")):
        path = video_matrix.write_cell(tmp_path, video_matrix.Cell(codec, container, 2, False))
        path.write_bytes(CORRUPTION["hole"](bytearray(path.read_bytes())))
        with pytest.raises(UserError, match="corrupt"):
            frames_of(path, [0])


def test_a_clip_beside_corrupt_frames_is_right_and_one_over_it_is_refused(tmp_path: Path) -> None:
    """Bytes of one frame in the middle are overwritten such that packets show nothing of it."""
    path = video_matrix.write_cell(tmp_path, video_matrix.Cell("mjpeg", "mp4", 0, False))
    expected = frames_of(path, [3, 70])
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][40]
        start, size = packet.pos or 0, packet.size
    content[start + size // 3 : start + size // 2] = bytes(size // 2 - size // 3)
    path.write_bytes(content)
    assert np.array_equal(frames_of(path, [3, 70]), expected)
    with pytest.raises(UserError, match="its frame 40 is corrupt"):
        frames_of(path, [40])
    assert "frame 40 is corrupt" in str(find_corruption(path))


def write_with(path: Path, other: str, frames: int = 30) -> Path:
    """H.264 with another stream: sound, or smaller pictures."""
    with av.open(str(path), "w", format={".ts": "mpegts", ".mkv": "matroska"}.get(path.suffix)) as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        if other == "sound":
            second: Any = file.add_stream("aac", rate=44100)
        else:
            second = file.add_stream("libx264", rate=25)
            second.height, second.width, second.pix_fmt = 48, 64, "yuv420p"
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(video_matrix.picture(number), format="rgb24")))
            if other == "sound":
                frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 44100
            else:
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            file.mux(second.encode(frame))
        file.mux(stream.encode())
        file.mux(second.encode())
    return path


def test_other_streams_change_nothing(tmp_path: Path) -> None:
    for name, other in (("a.mp4", "sound"), ("a.mkv", "sound"), ("a.ts", "sound"), ("two.mp4", "pictures")):
        frames = frames_of(write_with(tmp_path / name, other), range(30))
        assert [video_matrix.number_of(frame) for frame in frames] == list(range(30)), name


def test_edit_lists_fields_and_recordings_that_begin_in_the_middle(tmp_path: Path) -> None:
    """Frames left out by an mp4's edit list; interlaced and intra-refreshed H.264; 10 bits, odd sizes; ts, mpg cut."""
    source = video_matrix.write_cell(tmp_path, video_matrix.Cell("h264", "mp4", 2, False)).read_bytes()
    offset = source.index(b"elst") + 16
    start = int.from_bytes(source[offset : offset + 4], "big") + 14 * 512  # fourteen frames of the muxer's time base
    path = tmp_path / "edited.mp4"
    path.write_bytes(source[:offset] + start.to_bytes(4, "big") + source[offset + 4 :])
    assert_reads_as_decoded(path)
    with Video(path) as video:
        assert video_matrix.number_of(video.frames([0])[0]) == 14

    for number, settings in enumerate(("interlaced=1", "intra-refresh=1:keyint=12", "tff=1:bframes=3")):
        assert_reads_as_decoded(write_scenes(tmp_path / f"{number}.mp4", settings))
    for name, at in (("h264", 188 * 40), ("mpeg2", 188 * 60)):
        whole = video_matrix.write_cell(tmp_path, video_matrix.Cell(name, "ts", 2, True))
        whole.write_bytes(whole.read_bytes()[at:])
        assert_reads_as_decoded(whole)
    for pixels, size in (("yuv420p10le", (96, 128)), ("yuv444p", (95, 127)), ("yuv422p", (96, 126))):
        path = tmp_path / f"{pixels}.mkv"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, pixels
            for number in range(20):
                image = np.ascontiguousarray(video_matrix.picture(number)[: size[0], : size[1]])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
        frames = frames_of(path, [13, 2])
        assert frames.shape == (2, *size, 3)
        assert [video_matrix.number_of(frame) for frame in frames] == [13, 2]


def test_flips_are_applied_as_players_do(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4 + 40
    content[header : header + 4] = (-65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    frame = frames_of(path, [4])[0]
    assert np.abs(frame.astype(int) - picture(4)[:, ::-1]).mean() < 3
    assert not index_video(str(path)).decord_seeks


def test_a_changed_file_is_indexed_anew_and_names_are_no_protocols(tmp_path: Path) -> None:
    path = write_film(tmp_path / "concat:film.mp4", frames=10)
    with Video(path) as video:
        assert len(video) == 10
    write_film(path, frames=15)
    with Video(path) as video:
        assert len(video) == 15
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile '{path.name}'\n")
    with pytest.raises(UserError, match="no video of a known kind"):
        Video(playlist)


def read_in_child(path: str, queue: Any) -> None:
    queue.put(numbers(frames_of(Path(path), [11, 3])))


def test_reading_works_in_forked_processes_and_adds_no_threads(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4")
    before = len(os.listdir("/proc/self/task"))
    with Video(path) as video:
        video.frames([19, 1])
        assert len(os.listdir("/proc/self/task")) == before
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(str(path), queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=300) for _ in children] == [[11, 3]] * 3
    for child in children:
        child.join(300)
        assert child.exitcode == 0


def test_listing(tmp_path: Path) -> None:
    for name in ("b10.mp4", "b2.MKV", "sub/a.avi", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in list_videos(tmp_path)]
    assert names == ["b2.MKV", "b10.mp4", "sub/a.avi"]
    with pytest.raises(UserError, match="a video file, a folder or a glob pattern"):
        list_videos(tmp_path / "nothing")


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_opens(real_data: Path) -> None:
    files = [path for path in sorted((real_data / "videos" / "clips").iterdir()) if path.suffix == ".mp4"]

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024

    sizes = []
    for number in range(2000):
        frames_of(files[number % len(files)], [number % 30])
        if number % 500 == 499:
            gc.collect()
            sizes.append(resident())
    assert sizes[-1] - sizes[0] < 16, sizes  # MiB
