"""Speed of reading clips: this package's reader beside decord alone and PyAV from the start of the file.

    python -m benchmarks.video_loading [--source FILE|FOLDER] [--frames 32] [--stride 2] [--opens 2000] [--check]

Without a source it writes H.264 mp4 files itself, and measures short ones (300 frames), a long one (9,000 frames) and
all in one folder. Each reader reads the same clips, at random places, one thread, from opening the file to uint8 RGB
frames (T, H, W, 3). Ours is measured twice: as it opens a file for the first time, and again. Rounds go over all videos
with each reader in turn, at new places; printed are medians of clips per second and of the rounds' ratios, by the clock
and by the processor's time. Clips that differ from sequential decoding are counted. With --opens, memory is measured
over so many opens of the videos. --check measures instead what it costs that predict decodes each video in full before
its first clip: the processor's time for the views of a video with and without, as a ratio.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks.measuring import parse_settings, read_resident_bytes
from swinv2_tasks.datamodules.datasets.video import EvaluatedClips
from swinv2_tasks.datamodules.readers.video_packets import forget_indices
from swinv2_tasks.datamodules.readers.videos import Video, list_videos
from swinv2_tasks.datamodules.transforms.classification import IMAGENET_MEAN, IMAGENET_STD
from swinv2_tasks.datamodules.transforms.video import EvalViews, FrameSampling

Reader = Callable[[str, np.ndarray], np.ndarray]


def read_first_time(path: str, numbers: np.ndarray) -> np.ndarray:
    forget_indices()
    return read_again(path, numbers)


def read_again(path: str, numbers: np.ndarray) -> np.ndarray:
    with Video(path) as video:
        return video.frames(numbers)


def read_with_decord(path: str, numbers: np.ndarray) -> np.ndarray:
    """Its own seek, which is right for some files only."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(path, num_threads=1)
    return np.stack([reader[number].asnumpy() for number in numbers.tolist()])


def read_with_pyav(path: str, numbers: np.ndarray) -> np.ndarray:
    indices, frames = set(numbers.tolist()), {}
    with av.open(path) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(file.decode(stream)):
            if number in indices:
                frames[number] = frame.to_ndarray(format="rgb24", threads=1)
            if len(frames) == len(indices):
                break
    return np.stack([frames[number] for number in numbers.tolist()])


READERS: dict[str, Reader] = {
    "ours, first": read_first_time,
    "ours, again": read_again,
    "decord": read_with_decord,
    "PyAV": read_with_pyav,
}


def write_video(path: Path, frames: int, size: tuple[int, int] = (256, 336)) -> None:
    """H.264 as x264 makes it by default: key frames up to 250 frames apart, three B-frames, closed GOPs."""
    draw = np.random.default_rng(frames)
    scene = draw.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    grain = draw.integers(0, 40, (64, *size, 1), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for number in range(frames):
            image = np.roll(scene, (2 * number, 3 * number), (0, 1)) // 2 + grain[number % 64]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def list_available(path: str) -> dict[str, Reader]:
    """Those readers that work here."""
    readers = {}
    for name, read in READERS.items():
        try:
            read(path, np.array([0]))
            readers[name] = read
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name:12} left out: {str(error).strip().splitlines()[0][:100]}")
    return readers


def measure(title: str, paths: list[str], sampling: FrameSampling, rounds: int) -> None:
    """Print the readers' speeds over some videos."""
    import torch

    torch.manual_seed(0)
    lengths = {}
    for path in paths:
        with Video(path) as video:
            lengths[path] = len(video)
    readers = list_available(paths[0])
    clock: dict[str, list[float]] = {name: [] for name in readers}
    processor: dict[str, list[float]] = {name: [] for name in readers}
    different = dict.fromkeys(readers, 0)
    for number in range(rounds):
        clips = [(path, sampling.draw(lengths[path])) for path in paths]
        clips_read: dict[str, list[np.ndarray]] = {}
        for name in readers if number % 2 else reversed(readers):
            times = time.perf_counter(), time.process_time()
            clips_read[name] = [readers[name](*clip) for clip in clips]
            clock[name].append(time.perf_counter() - times[0])
            processor[name].append(time.process_time() - times[1])
        for name in readers:
            pairs = zip(clips_read[name], clips_read["PyAV"], strict=True)
            different[name] += sum(np.abs(frames.astype(int) - expected).mean() > 1 for frames, expected in pairs)
    print(f"{title}: {len(paths)} videos, clips of {sampling.frames} × {sampling.stride} frames, one thread")
    for name in readers:
        ratios = [
            statistics.median(own / other for own, other in zip(times["ours, first"], times[name], strict=True))
            for times in (clock, processor)
        ]
        print(
            f"  {name:12} {len(paths) / statistics.median(clock[name]):7.1f} clips/s, {ratios[0]:.2f} times the speed "
            f"of ours, first ({ratios[1]:.2f} by processor time), {different[name]} of {rounds * len(paths)} wrong"
        )


def measure_memory(paths: list[str], opens: int) -> None:
    """Print the memory of this process over many opens."""
    sizes = []
    for number in range(opens):
        read_again(paths[number % len(paths)], np.array([number % 20]))
        if number % max(1, opens // 10) == 0:
            gc.collect()
            sizes.append(read_resident_bytes("VmRSS") // 2**20)
    print(f"memory over {opens} opens, MiB: {', '.join(map(str, sizes))}")


def measure_check(title: str, paths: list[str], sampling: FrameSampling, rounds: int) -> None:
    """Print how much longer reading the views of videos takes where each is decoded in full first."""
    for clips, crops in ((4, 3), (1, 1)):
        views = EvalViews((224, 224), crops, IMAGENET_MEAN, IMAGENET_STD, None)
        videos = [(path, -1) for path in paths]
        ratios = []
        for _ in range(rounds):
            seconds = []
            for checks_all in (False, True):
                forget_indices()
                dataset = EvaluatedClips(videos, 1, sampling, clips, clips * crops, views, checks_all=checks_all)
                start = time.process_time()
                for index in range(len(dataset)):
                    dataset[index]
                seconds.append(time.process_time() - start)
            ratios.append(seconds[1] / seconds[0])
        print(
            f"{title}: {clips} × {crops} views, checked in full: {statistics.median(ratios):.2f} times as long",
            flush=True,
        )


@dataclass(frozen=True)
class Settings:
    """What is read, and how.

    Args:
        source: file or folder of videos; the default is synthetic ones.
        frames: of a clip.
        stride: between them.
        rounds: timed readings.
        opens: how often files are opened to see whether memory grows; 0: not at all.
        check: measure what checking whole videos costs.
    """

    source: str | None = None
    frames: int = 32
    stride: int = 2
    rounds: int = 5
    opens: int = 0
    check: bool = False


def main(settings: Settings) -> None:

    sampling = FrameSampling(settings.frames, settings.stride)
    report = measure_check if settings.check else measure
    with tempfile.TemporaryDirectory() as folder:
        if settings.source is None:
            for number in range(4):
                write_video(Path(folder) / f"short{number}.mp4", 300)
            write_video(Path(folder) / "long.mp4", 9000)
            paths = [str(path) for path in list_videos(folder)]
            report("short", [path for path in paths if "short" in path], sampling, settings.rounds)
            report("long", [path for path in paths if "long" in path], sampling, settings.rounds)
            if not settings.check:
                measure("folder", paths, sampling, settings.rounds)
        else:
            paths = [str(path) for path in list_videos(settings.source)]
            report(settings.source, paths, sampling, settings.rounds)
        if settings.opens:
            measure_memory(paths, settings.opens)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
