"""Top-1 of a video classifier on re-augmented clips of its training videos: other frames, other crops, other flips.

    python -m benchmarks.resampling --ckpt_path CKPT --root FOLDER [--times 20] [--views 1]

The training videos of FOLDER are sampled ``times`` times with the augmentation of the checkpoint's own settings and a
seed that its training did not have; with several views, each time so many clips of each, whose probabilities are
averaged. Printed is the top-1 over all samples, and which classes were missed how often. For overfitted videos: it
shows whether what was learned is more than the very pixels seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from benchmarks.measuring import parse_settings
from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.hyperparameters import recorded_arguments, task_record
from swinv2_tasks.tasks import VideoClassificationTask
from swinv2_tasks.weights.files import read_checkpoint


@dataclass(frozen=True)
class Settings:
    """What is read.

    Args:
        ckpt_path: checkpoint of a training of videos.
        root: folder of the videos, as in training.
        times: how often each is read.
        views: clips whose probabilities are averaged.
        seed: of the random numbers, which training did not have.
    """

    ckpt_path: str
    root: str
    times: int = 20
    views: int = 1
    seed: int = 1_000_003


def main(settings: Settings) -> None:
    task = VideoClassificationTask.load_from_checkpoint(settings.ckpt_path)
    record = task_record(read_checkpoint(settings.ckpt_path).contents, settings.ckpt_path)
    arguments = recorded_arguments(KineticsDataModule, record["data"]["init_args"], settings.ckpt_path)
    data = KineticsDataModule(**{**arguments, "root": settings.root, "batch_size": 1})
    data.setup("fit")
    torch.manual_seed(settings.seed)
    loader = data.train_dataloader()
    videos = data.train_samples
    correct = 0
    missed: Counter[str] = Counter()
    for time in range(settings.times):
        sums, labels = torch.zeros(videos, task.num_classes), torch.zeros(videos, dtype=torch.int64)
        for view in range(settings.views):
            loader.batch_sampler.set_epoch(time * settings.views + view)
            for batch in loader:
                with torch.inference_mode():
                    sums[batch["video_id"]] += task(batch["clip"][:, 0]).softmax(1)
                labels[batch["video_id"]] = batch["label"]
        errors = labels[sums.argmax(1) != labels]
        correct += videos - len(errors)
        missed.update(data.class_names[k] for k in errors.tolist())
        print(f"  {time + 1} of {settings.times}: {correct} of {(time + 1) * videos}", flush=True)
    samples = settings.times * videos
    print(f"top-1 {correct / samples:.4f}: {correct} of {samples} samples; missed: {dict(missed) or 'none'}")


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
