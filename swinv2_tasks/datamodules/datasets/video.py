"""Samples of videos: a clip to train with, the views to evaluate or predict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from swinv2_tasks.datamodules.datasets.classification import label_row
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.videos import DecoderChoice, Video, find_corruption, unreadable_video
from swinv2_tasks.datamodules.transforms.video import EvalViews, FrameSampling, as_clip


class TrainingClips(Dataset):
    """Samples {clip, video_id, path, label} for `VideoBatch`, a random clip of each video.

    Args:
        videos: Paths and class indices, of all videos one or of all a list.
        num_classes: Length of the rows that lists of indices become.
        sampling: Which frames.
        transform: Clip (T, 3, H, W) uint8 → float32, alike for all frames.
        decoder: Which library decodes.
        faulty: Videos that count as ones that cannot be read, with the reasons.
    """

    def __init__(
        self,
        videos: Sequence[VideoSample],
        num_classes: int,
        sampling: FrameSampling,
        transform: Callable[[Tensor], Tensor],
        decoder: DecoderChoice = "auto",
        faulty: Mapping[str, str] | None = None,
    ) -> None:
        self.videos = videos
        self.num_classes = num_classes
        self.sampling = sampling
        self.transform = transform
        self.decoder: DecoderChoice = decoder
        self.faulty = faulty or {}

    def __len__(self) -> int:
        return len(self.videos)

    def sample_id(self, index: int) -> str:
        """The video's file."""
        return self.videos[index][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.videos[index]
        if path in self.faulty:
            raise unreadable_video(path, self.faulty[path])
        with Video(path, self.decoder) as video:
            frames = video.frames(self.sampling.draw(len(video)))
        clip = self.transform(as_clip(frames))
        row = label_row(label, self.num_classes)
        return {"clip": clip.transpose(0, 1)[None], "video_id": index, "path": path, "label": row}


class EvaluatedClips(Dataset):
    """Samples {clip, video_id, path, label} for `VideoBatch`: some of a video's views each, one sample after the other.

    Views are counted clip by clip, and within a clip crop by crop.

    Args:
        videos: Paths and class indices, of all videos one or of all a list; −1 for none, then samples have no label.
        num_classes: Length of the rows that lists of indices become.
        sampling: Which frames.
        clips: Clips of a video.
        number: Views of a sample.
        transform: Frames and numbers of crops → views.
        decoder: Which library decodes.
        faulty: Videos that count as ones that cannot be read, with the reasons.
        checks_all: Whether a video is decoded in full before its first sample, to find corrupt frames anywhere in it.
    """

    def __init__(
        self,
        videos: Sequence[VideoSample],
        num_classes: int,
        sampling: FrameSampling,
        clips: int,
        number: int,
        transform: EvalViews,
        decoder: DecoderChoice = "auto",
        faulty: Mapping[str, str] | None = None,
        checks_all: bool = False,
    ) -> None:
        self.videos = videos
        self.num_classes = num_classes
        self.sampling = sampling
        self.clips = clips
        self.number = number
        self.transform = transform
        self.decoder: DecoderChoice = decoder
        self.faulty = faulty or {}
        self.checks_all = checks_all
        self.parts = clips * transform.crops // number

    @property
    def paths(self) -> list[str]:
        """The video files."""
        return [path for path, _ in self.videos]

    def __len__(self) -> int:
        return len(self.videos) * self.parts

    def sample_id(self, index: int) -> str:
        """The video's file, of which several samples may be read."""
        return self.videos[index // self.parts][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        video_id, part = divmod(index, self.parts)
        path, label = self.videos[video_id]
        reason = self.faulty.get(path)
        if reason is None and self.checks_all and part == 0:
            reason = find_corruption(path)
        if reason is not None:
            raise unreadable_video(path, reason)

        crops_of_clips: dict[int, list[int]] = {}
        for view in range(part * self.number, (part + 1) * self.number):
            clip_index, crop = divmod(view, self.transform.crops)
            crops_of_clips.setdefault(clip_index, []).append(crop)

        with Video(path, self.decoder) as video:
            numbers = self.sampling.spread(len(video), self.clips)[[*crops_of_clips]]  # (clips, frames)
            frames = video.frames(numbers.ravel())
        clips = frames.reshape(*numbers.shape, *frames.shape[1:])
        views = [self.transform(clip, crops) for clip, crops in zip(clips, crops_of_clips.values(), strict=True)]

        sample = {"clip": torch.cat(views), "video_id": video_id, "path": path}
        return sample if label == -1 else {**sample, "label": label_row(label, self.num_classes)}
