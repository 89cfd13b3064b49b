"""Speed of reading clips: this package's reader (decord) beside PyAV and torchcodec, where they are installed.

    python -m benchmarks.video_loading FILE|FOLDER [--frames 32] [--stride 2] [--rounds 5] [--opens 2000]

Each reads the same clip of each video, one thread, from opening the file to uint8 RGB frames (T, H, W, 3): the frames
that are asked for and no others, as far as the library can. Rounds go over all videos with each reader in turn;
printed are medians of clips per second, and the median of the rounds' ratios. Clips that differ from ours by more than
rounding are counted. With --opens, memory is measured over so many opens of the videos.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measuring import resident
from swinv2_tasks.datamodules.clips import FrameSampling
from swinv2_tasks.datamodules.videos import Video, list_videos

Reader = Callable[[str, np.ndarray], np.ndarray]


def ours(path: str, numbers: np.ndarray) -> np.ndarray:
    with Video(path) as video:
        return video.frames(numbers)


def pyav(path: str, numbers: np.ndarray) -> np.ndarray:
    """From the start of the file to the last frame wanted: frames have no numbers there to seek by."""
    import av

    wanted, found = set(numbers.tolist()), {}
    with av.open(path) as file:
        file.streams.video[0].thread_count = 1
        for number, frame in enumerate(file.decode(video=0)):
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    return np.stack([found[number] for number in numbers.tolist()])


def torchcodec(path: str, numbers: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(numbers.tolist()).data.numpy()


def available(readers: dict[str, Reader], path: str, numbers: np.ndarray) -> dict[str, Reader]:
    """Those readers that work here."""
    found = {}
    for name, read in readers.items():
        try:
            read(path, numbers)
            found[name] = read
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name:12} left out: {str(error).strip().splitlines()[0][:100]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--opens", type=int, default=0)
    settings = parser.parse_args()

    sampling = FrameSampling(settings.frames, settings.stride)
    clips = []
    for path in map(str, list_videos(settings.source)):
        with Video(path) as video:
            clips.append((path, sampling.spread(len(video), 1)[0]))
    readers = available({"ours": ours, "pyav": pyav, "torchcodec": torchcodec}, *clips[0])
    expected = [ours(*clip) for clip in clips]
    for name, read in readers.items():
        different = sum(
            np.abs(read(*clip).astype(int) - one).mean() > 1 for clip, one in zip(clips, expected, strict=True)
        )
        if different:
            print(f"{name}: {different} of {len(clips)} clips are not the frames that were asked for")
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(settings.rounds):
        for name in readers if number % 2 else reversed(readers):
            start = time.perf_counter()
            for clip in clips:
                readers[name](*clip)
            seconds[name].append(time.perf_counter() - start)
    print(f"{len(clips)} videos, clips of {settings.frames} × {settings.stride} frames, one thread")
    for name, times in seconds.items():
        ratio = statistics.median(own / other for own, other in zip(seconds["ours"], times, strict=True))
        print(f"{name:12} {len(clips) / statistics.median(times):7.1f} clips/s, {ratio:.2f} times our speed")

    if settings.opens:
        sizes = []
        for number in range(settings.opens):
            path, numbers = clips[number % len(clips)]
            ours(path, numbers[:1])
            if number % max(1, settings.opens // 10) == 0:
                gc.collect()
                sizes.append(resident("VmRSS") // 2**20)
        print(f"memory over {settings.opens} opens, MiB: {', '.join(map(str, sizes))}")


if __name__ == "__main__":
    main()
