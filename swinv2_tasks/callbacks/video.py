"""What a model says of videos, as tables and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from swinv2_tasks.callbacks.pictures import Answer, ClassificationPredictions
from swinv2_tasks.datamodules.videos import Video


class VideoPredictions(ClassificationPredictions):
    """Writes predictions.csv and predictions.json, the five likeliest classes of each video by the mean over its views,
    and a contact sheet with four frames of each video. The arguments are those of ``ClassificationPredictions``."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Any],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = zip(outputs["path"], outputs["video_id"].tolist(), outputs["probabilities"].cpu(), strict=True)
        self._batches.append([(*row, outputs["views"]) for row in rows])

    def answers(self, batches: list[Any]) -> list[Answer]:
        sums: dict[int, tuple[str, torch.Tensor, int]] = {}
        for path, video_id, probabilities, views in (row for batch in batches for row in batch):
            _, before, number = sums.get(video_id, (path, 0, 0))
            sums[video_id] = (path, before + probabilities, number + views)
        found = []
        for _, (path, total, number) in sorted(sums.items()):
            best = (total / number).topk(min(5, len(total)))
            found.append(Answer(path, best.values.tolist(), best.indices.tolist()))
        return found

    def picture(self, path: str) -> Image.Image:
        return film_strip(path)

    def write(self, folder: Path, answers: list[Answer], ids: list[Any], names: list[str]) -> None:
        super().write(folder, answers, ids, names)
        content = [
            {
                "path": path,
                "classes": [
                    {"id": ids[c], "name": names[c], "score": round(score, 6)}
                    for c, score in zip(classes, scores, strict=True)
                ],
            }
            for path, scores, classes in answers
        ]
        (folder / "predictions.json").write_text(json.dumps(content, indent=2) + "\n")


def film_strip(path: str, side: int = 2) -> Image.Image:
    """Frames spread evenly over a video, side × side of them in reading order, at a pixel's distance."""
    with Video(path) as video:
        places = (np.arange(side**2) + 0.5) / side**2 * len(video)
        frames = video.frames(places.astype(int))
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (side * (width + 1) - 1, side * (height + 1) - 1), "white")
    for k, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (k % side * (width + 1), k // side * (height + 1)))
    return sheet
