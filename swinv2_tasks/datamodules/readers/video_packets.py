"""What the packets of a video file say: whether it is whole, which frames it has, where decoding can begin."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from swinv2_tasks.datamodules.readers.images import MAX_PIXELS, allowed_pixels
from swinv2_tasks.datamodules.readers.video_bitstreams import (
    is_whole,
    may_hold_fields,
    nal_length,
    random_access,
    shows_frame,
)
from swinv2_tasks.datamodules.readers.video_containers import (
    excess_frames,
    has_quarter_turns,
    missing_bytes,
    stated_codec,
)

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ogg,ivf,obu,mxf,nut,gif,rm"
)
"""Containers that are opened. Not among them: playlists, which name other files to be read."""

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED_FORMATS = (_MP4, "matroska,webm")
"""Containers in which every packet is a whole frame and states when it is shown."""

_ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores")
"""Codecs of which, in these containers, a packet is one frame, or says that it is none to be shown."""

_REMEMBERED_FRAMES = 2_000_000
"""Of how many frames in total indices are kept by a process: some 50 MB at most."""


class UnreadableVideo(Exception):
    """Why a file cannot be read, in words that follow "Cannot read the video PATH: "."""


class SeekPoint(NamedTuple):
    """A packet that decoding can begin with: frames from its own on, in the order shown, need none before it."""

    frame: int
    """Number of its frame."""
    pts: int
    dts: int
    size: int


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a file's video stream, in the order in which sequential decoding gives them.

    Args:
        stream: Which of the file's streams.
        frames: How many there are.
        times: Presentation times (N,), strictly increasing, in the stream's time base; None where they do not
            distinguish frames, so that only counting from the first one does.
        seek_points: Where decoding can begin beside the file's start, in order.
        decord_seeks: Whether decord's seek is proved to give the frames asked for.
    """

    stream: int
    frames: int
    times: np.ndarray | None
    seek_points: tuple[SeekPoint, ...]
    decord_seeks: bool


class _Packets(NamedTuple):
    """The packets of a stream in the order of decoding; times that a packet lacks are NONE."""

    pts: np.ndarray
    dts: np.ndarray
    size: np.ndarray
    is_key: np.ndarray
    is_clean: np.ndarray
    """Whether decoding can begin here, for all frames that are shown later."""
    is_instantaneous: np.ndarray
    """Whether, beyond that, no later packet needs an earlier one (IDR)."""
    is_shown: np.ndarray
    is_discarded: np.ndarray


NONE = np.iinfo(np.int64).min

_remembered: OrderedDict[tuple[str, int, int, int], VideoIndex] = OrderedDict()


def open_video(path: str) -> av.container.InputContainer:
    """Open a local file, and nothing that it may name.

    Raises:
        UnreadableVideo: It is cut off, or nothing that FFmpeg knows.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        # `file:`, because FFmpeg takes what stands before a colon for a protocol.
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideo(missing_bytes(Path(path)) or "it is no video of a known kind, or cut off") from error


def video_stream(container: av.container.InputContainer, index: int | None = None) -> av.VideoStream:
    """The stream that players show, or a given one, decoded in the calling thread; the others are not read.

    Raises:
        UnreadableVideo: There are no moving pictures in the file, or no decoder for them.
    """
    stream: Any = container.streams.best("video") if index is None else container.streams[index]
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise UnreadableVideo(_missing_pictures(container))
    context = getattr(stream, "codec_context", None)
    if context is None or context.name == "av1":  # FFmpeg's own decoder of AV1 is none without special hardware
        raise UnreadableVideo(_undecodable(container, "AV1" if context is not None else None))
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {
        "max_pixels": str(allowed_pixels(MOST_FRAME_PIXELS))
    }  # of frames, whatever the header states
    return stream


def _missing_pictures(container: av.container.InputContainer) -> str:
    """Why a file has no stream of moving pictures: it holds none, or some in a codec that is not known there."""
    types = {stream.type for stream in container.streams}
    if types - {"audio", "video", "subtitle"}:
        codec = stated_codec(_path_of(container))
        if codec is None and container.format.name == "mpegts":  # whose writers give what has no number there no name
            codec = "in a codec that the file does not name (AV1, say)"
        if codec is not None:
            return _undecodable(container, codec)
    return "there are no pictures in it, only sound" if "audio" in types else "there are no pictures in it"


def _undecodable(container: av.container.InputContainer, codec: str | None) -> str:
    """That a file's pictures are in a codec which cannot be decoded, and what to do; None: the file may say which."""
    codec = codec or stated_codec(_path_of(container)) or "of an unknown codec"
    container_name = container.format.name.partition(",")[0]
    return (
        f"its pictures are {codec}, for which there is no decoder here (in {container_name}); convert it to H.264 in "
        "mp4, as by ffmpeg -i OLD -c:v libx264 NEW.mp4"
    )


def _path_of(container: av.container.InputContainer) -> Path:
    return Path(container.name.removeprefix("file:"))


def index_video(path: str) -> VideoIndex:
    """The index of a file's frames, remembered as long as the file stays unchanged.

    Where packets prove which frames there are, nothing is decoded; otherwise the whole file is, once.

    Raises:
        UnreadableVideo: The file is cut off or corrupt, as far as packets show it, or decoding where that was needed;
            or it holds no frame.
    """
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino)
    if key in _remembered:
        _remembered.move_to_end(key)
        return _remembered[key]

    index = _index(path)
    _remembered[key] = index
    while len(_remembered) > 1 and sum(kept.frames for kept in _remembered.values()) > _REMEMBERED_FRAMES:
        _remembered.popitem(last=False)  # the one that was not needed for the longest time
    return index


def forget_indices() -> None:
    """Forget the indices of all files."""
    _remembered.clear()


def _index(path: str) -> VideoIndex:
    if (reason := missing_bytes(Path(path)) or excess_frames(Path(path))) is not None:
        raise UnreadableVideo(reason)

    with open_video(path) as container:
        stream = video_stream(container)
        number = stream.index
        _check_size(stream)
        codec = stream.codec_context.codec.canonical_name
        packets = _read_packets(container, stream, codec)
        is_mp4 = container.format.name == _MP4
        is_timed = container.format.name in _TIMED_FORMATS and codec in _ONE_FRAME_PER_PACKET

        expected = len(stream.index_entries) if is_mp4 else 0
        if expected > len(packets.pts):
            raise UnreadableVideo(f"it is cut off: {len(packets.pts)} of {expected} packets are there")
        if not len(packets.pts):
            raise UnreadableVideo("it holds no frame")

        # Two packets may be the two fields of one frame.
        has_fields = codec == "h264" and may_hold_fields(stream.codec_context.extradata or b"")
        packets_are_frames = is_timed and _counts_frames(packets) and not has_fields
        decord_seeks = (
            packets_are_frames
            and is_mp4
            and codec in ("h264", "hevc")
            and stream.codec_context.pix_fmt in ("yuv420p", "yuvj420p")
            and _decord_seeks(packets)
            and has_quarter_turns(Path(path))
        )

    if packets_are_frames:
        times = np.sort(packets.pts[packets.is_shown])
        return VideoIndex(number, len(times), times, _seek_points(packets, times), decord_seeks)

    decoded_times = _decoded_times(path, number)
    if not decoded_times:
        raise UnreadableVideo("it holds no frame")
    times = np.array([NONE if time is None else time for time in decoded_times], np.int64)
    if (times == NONE).any() or (np.diff(times) <= 0).any():
        return VideoIndex(number, len(times), None, (), False)
    return VideoIndex(number, len(times), times, _seek_points(packets, times), False)


MOST_FRAME_PIXELS = 10_000_000
"""Of a frame, unless the environment allows more: 4096 × 2304 has 9.4 million. A clip of 32 frames then takes 1 GB."""

MOST_PACKETS = 2_000_000
"""Of a video: those of nine hours at 60 frames a second."""


def _check_size(stream: av.VideoStream) -> None:
    """Refuses a video whose frames, as its header states them, would fill the memory.

    Raises:
        UnreadableVideo: they would.
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > (limit := allowed_pixels(MOST_FRAME_PIXELS)):
        raise UnreadableVideo(
            f"its frames have {width}×{height} pixels, more than the {limit:,} that are allowed; make them smaller, as "
            "by ffmpeg -i OLD -vf scale=-2:1080 NEW.mp4, or allow more where memory is plenty, by --max_pixels (or "
            f"{MAX_PIXELS})"
        )


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream, codec: str) -> _Packets:
    """All packets of a stream.

    Raises:
        UnreadableVideo: One is corrupt, as the demuxer says or its own structure.
    """
    length = nal_length(codec, stream.codec_context.extradata or b"")
    rows: list[tuple[int | bool, ...]] = []
    with ffmpeg_errors(container.format.name) as errors:
        try:
            for packet in container.demux(stream):
                if len(rows) > MOST_PACKETS:
                    raise UnreadableVideo(f"it has more than {MOST_PACKETS:,} packets; cut it into several videos")
                if packet.size or packet.dts is not None:  # the last one only says that there are no more
                    rows.append(_row(packet, codec, length, len(rows)))
        except av.FFmpegError as error:
            raise UnreadableVideo(f"reading it stops after {len(rows)} packets: {error.strerror}") from error
    if errors:
        raise UnreadableVideo(f"it is corrupt between its packets ({errors[0]})")
    columns = np.array(rows, np.int64).reshape(-1, 8).T
    return _Packets(*columns[:3], *(column.astype(bool) for column in columns[3:]))


def _row(packet: av.Packet, codec: str, length: int, number: int) -> tuple[int | bool, ...]:
    """What `_Packets` holds of a packet."""
    if packet.is_corrupt:
        raise UnreadableVideo(f"its packet {number} is corrupt or cut off")
    is_key = packet.is_keyframe
    is_clean = is_instantaneous = is_key
    is_shown = True
    if codec in ("h264", "hevc"):
        content = bytes(packet)
        if not is_whole(codec, content, length):
            raise UnreadableVideo(f"its packet {number} is corrupt")
        if is_key:
            is_clean, is_instantaneous = random_access(codec, content, length)
    elif codec in ("vp8", "vp9"):
        is_shown = shows_frame(codec, memoryview(packet))
    pts = NONE if packet.pts is None else packet.pts
    dts = NONE if packet.dts is None else packet.dts
    return pts, dts, packet.size, is_key, is_clean, is_instantaneous, is_shown, packet.is_discard


def _counts_frames(packets: _Packets) -> bool:
    """Whether each packet that is shown is a frame of its own, and their times the order.

    All state different times, which distinguish them; none is empty or to be left out; and decoding the first
    one gives the first frame shown, so that no decoder leaves out those that need earlier ones.
    """
    times = packets.pts[packets.is_shown]
    return bool(
        len(times)
        and (times != NONE).all()
        and len(np.unique(times)) == len(times)
        and (packets.size > 0).all()
        and not packets.is_discarded.any()
        and packets.is_clean[0]
        and packets.is_shown[0]
        and packets.pts[0] == times.min()
    )


def _decord_seeks(packets: _Packets) -> bool:
    """Whether decord's seek gives the frames asked for, given that packets count frames.

    decord takes the number of a key frame among packets for its number among frames, lets FFmpeg seek to its
    presentation time, and counts what the decoder returns from there. That is right if
    1. packets before a key frame are shown before it, and those after it later: then both numbers are one, and the
       decoder's first frame after the seek is the key frame, for there is none that leads it;
    2. no packet needs any before its key frame: then what follows decodes as it would from the start. All that the
       container calls key frames must be so, for decord seeks to any;
    3. FFmpeg's seek finds this key frame: mp4 looks for the last one whose *decoding* time is not after the time
       wanted, so the next key frame must be decoded later than this one is shown. decord first seeks forward, sees by
       the time of the first frame if that went too far, and then seeks back, which condition 3 is for.
    """
    keys = np.flatnonzero(packets.is_key)
    if not packets.is_instantaneous[keys].all() or (packets.dts == NONE).any():
        return False

    # Of the packets up to each one, the latest time of being shown; of those from each one on, the earliest.
    latest_before = np.maximum.accumulate(packets.pts)
    earliest_after = np.minimum.accumulate(packets.pts[::-1])[::-1]
    later_keys = keys[keys > 0]
    shown_apart = (latest_before[later_keys - 1] < packets.pts[later_keys]).all()
    shown_first = (earliest_after[keys] == packets.pts[keys]).all()

    is_next_key_later = (packets.dts[keys[1:]] > packets.pts[keys[:-1]]).all()
    are_decoded_in_order = (np.diff(packets.dts) > 0).all()
    return bool(shown_apart and shown_first and is_next_key_later and are_decoded_in_order)


def _seek_points(packets: _Packets, times: np.ndarray) -> tuple[SeekPoint, ...]:
    """Packets that decoding can begin with, by the frame that they are."""
    points = []
    for packet in np.flatnonzero(packets.is_clean & (packets.pts != NONE)).tolist():
        pts = int(packets.pts[packet])
        frame = int(np.searchsorted(times, pts))
        if frame < len(times) and times[frame] == pts:
            points.append(SeekPoint(frame, pts, int(packets.dts[packet]), int(packets.size[packet])))
    return tuple(sorted(points))


def _decoded_times(path: str, stream: int) -> list[int | None]:
    """Presentation times of all frames, by decoding them.

    Raises:
        UnreadableVideo: One is corrupt.
    """
    return [frame.pts for frame in decode(path, stream)]


def decode(path: str, stream: int) -> Iterator[av.VideoFrame]:
    """All frames of a stream in the order of sequential decoding, which is what frame k means.

    Raises:
        UnreadableVideo: One is corrupt, which a decoder may conceal, or cannot be decoded. What comes before the first
            key frame of a recording that begins in the middle counts only as far as it can be decoded.
    """
    number = 0
    with open_video(path) as container:
        seen_key = False
        for packet in container.demux(video_stream(container, stream)):
            seen_key = seen_key or packet.is_keyframe
            try:
                frames = decode_packet(packet)
            except CorruptPacket as error:
                if seen_key:
                    raise UnreadableVideo(f"its frame {number} is corrupt ({error})") from error
                frames = error.frames
            for frame in frames:
                yield frame
                number += 1


class CorruptPacket(Exception):
    """What FFmpeg says of a packet that does not decode as it should; ``frames`` is what it decoded all the same."""

    def __init__(self, message: str, frames: list[av.VideoFrame]) -> None:
        super().__init__(message)
        self.frames = frames


def decode_packet(packet: av.Packet) -> list[av.VideoFrame]:
    """The frames that come out of the decoder when a packet goes in.

    Raises:
        CorruptPacket: The decoder fails, or reports an error that it conceals.
    """
    frames: list[av.VideoFrame] = []
    failure = None
    with ffmpeg_errors() as errors:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            failure = error
    if failure is not None or errors:
        raise CorruptPacket(errors[0] if errors else str(failure), frames) from failure
    if any(frame.is_corrupt for frame in frames):
        raise CorruptPacket("concealed by the decoder", frames)
    return frames


@contextmanager
def ffmpeg_errors(source: str | None = None) -> Iterator[list[str]]:
    """Collects what FFmpeg reports as errors in this thread, of one of its parts or of all; filled on leaving.

    Few decoders mark the frames in which they conceal errors; all of them report it.
    """
    level = av.logging.get_level()
    skips = av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    errors: list[str] = []
    try:
        with av.logging.Capture() as messages:
            try:
                yield errors
            finally:
                errors += [text.strip() for _, name, text in messages if source in (None, name)]
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
