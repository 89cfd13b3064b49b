"""Which frames and which parts of them: by counting, for every length of video."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from swinv2_tasks.datamodules.transforms.video import EvalViews, FrameSampling, as_clip, resize_to_cover, view_offsets
from swinv2_tasks.errors import UserError


@pytest.mark.parametrize("total", [16, 17, 40, 300])
@pytest.mark.parametrize(("frames", "stride"), [(8, 2), (16, 1), (5, 3)])
def test_a_dense_clip_is_a_stretch_at_any_position(total: int, frames: int, stride: int) -> None:
    torch.manual_seed(0)
    sampling = FrameSampling(frames, stride)
    starts = set()
    for _ in range(300):
        numbers = sampling.draw(total)
        assert (np.diff(numbers) == stride).all() and numbers[0] >= 0 and numbers[-1] < total
        starts.add(int(numbers[0]))
    possible = max(1, total - frames * stride + 1)  # as many as in the published code
    assert max(starts) < possible
    assert {0, possible - 1} <= starts if possible < 30 else len(starts) > 50


def test_clips_are_spread_from_end_to_end() -> None:
    clips = FrameSampling(8, 2).spread(100, 4)
    assert clips.shape == (4, 8)
    assert clips[:, 0].tolist() == [0, 28, 57, 85]  # of 28.3 and 56.7: rounded and clips[-1, -1] == 99
    assert FrameSampling(8, 2).spread(100, 1).tolist() == [list(range(42, 58, 2))]


def test_a_video_that_is_too_short() -> None:
    assert FrameSampling(8, 2, short="loop").spread(5, 1).tolist() == [[0, 2, 4, 1, 3, 0, 2, 4]]
    assert FrameSampling(8, 2, short="hold").spread(5, 1).tolist() == [[0, 2, 4, 4, 4, 4, 4, 4]]
    assert FrameSampling(4, 2, short="loop").draw(1).tolist() == [0, 0, 0, 0]
    assert FrameSampling(8, mode="segments").spread(4, 1).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


@pytest.mark.parametrize("total", [3, 8, 30, 31, 300])
def test_segments_take_one_frame_of_each_part(total: int) -> None:
    torch.manual_seed(0)
    sampling = FrameSampling(8, mode="segments")
    edges = np.arange(9) * total / 8
    draws = np.stack([sampling.draw(total) for _ in range(200)])
    assert (draws >= np.floor(edges[:-1])).all() and (draws < np.ceil(edges[1:])).all()
    if total >= 16:
        assert all(len(set(column)) > 1 for column in draws.T)
    middle = sampling.spread(total, 1)[0]
    assert middle.tolist() == [int((k + 0.5) * total / 8) for k in range(8)]
    three = sampling.spread(total, 3)
    assert three[1].tolist() == middle.tolist()
    assert (three[0] <= three[1]).all() and (three[1] <= three[2]).all()


def test_settings_out_of_range() -> None:
    for settings in ({"frames": 0}, {"stride": 0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            FrameSampling(**settings)


def test_crops_run_along_the_longer_side() -> None:
    assert view_offsets((10, 31), (10, 10), 3) == [(0, 0), (0, 10), (0, 20)]
    assert view_offsets((31, 10), (10, 10), 5) == [(0, 0), (5, 0), (10, 0), (15, 0), (20, 0)]
    assert view_offsets((14, 31), (10, 10), 3) == [(2, 0), (2, 10), (2, 20)]
    assert view_offsets((10, 31), (10, 10), 1) == [(0, 10)]


@pytest.mark.parametrize("total", [64, 65, 97, 250, 300, 301])
def test_starts_are_those_of_the_published_code(total: int) -> None:
    """mmaction2's SampleFrames, worked out by hand: k-th of n at round(k · (N − span) / (n − 1)), one at the half."""
    last = total - 63
    for clips in (2, 3, 4, 10):
        starts = FrameSampling(32, 2).spread(total, clips)[:, 0].tolist()
        assert starts == [round(k * last / (clips - 1)) for k in range(clips)]
    assert FrameSampling(32, 2).spread(total, 1)[0, 0] == last // 2


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (480, 640), (100, 130)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_frames_are_resized_as_by_opencv(size: tuple[int, int], crop_pct: float) -> None:
    """Without antialiasing, to the published code's sizes; OpenCV rounds in fixed point, one gray level at most."""
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    clip = resize_to_cover(as_clip(frames), (224, 224), crop_pct)
    side = {1.0: 224, 0.875: 256}[crop_pct]
    height, width = (int(edge * (side / min(size)) + 0.5) for edge in size)
    assert clip.shape == (2, 3, height, width)
    for frame, resized in zip(frames, clip, strict=True):
        expected = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (60, 60)])
def test_views_are_parts_of_the_resized_frames(size: tuple[int, int]) -> None:
    """A ramp from end to end: each view's mean tells its place; all frames of a view show the same part."""
    height, width = size
    ramp = np.linspace(0, 255, max(size))
    frame = np.broadcast_to(ramp[None, :] if width >= height else ramp[:, None], size).astype(np.uint8)
    frames = np.repeat(np.stack([frame] * 4)[..., None], 3, axis=3)
    transform = EvalViews((30, 30), 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    views = transform(frames, [0, 1, 2])
    assert views.shape == (3, 3, 4, 30, 30) and views.dtype == torch.float32
    assert (views == views[:, :, :1]).all()
    means = views.mean((1, 2, 3, 4))
    share = min(size) / max(size) / 2
    assert means.tolist() == pytest.approx([share, 0.5, 1 - share], abs=0.02)
    assert torch.equal(transform(frames, [2, 0]), views[[2, 0]])
