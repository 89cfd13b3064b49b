"""Window transfer: how does a trained model do at larger windows and sizes? The paper's section 3.3, small-scale.

    python -m benchmarks.transfer --signs FOLDER --sample FOLDER [--tasks signs segmentation detection] [--seeds 3]
        [--output FOLDER] [--reduced]

A very small Swin V2 is trained at window 4 with each of the three position biases: a network over log-spaced offsets
(Swin V2), the same over linear ones, and a table of one number per offset (Swin V1), which is resized bicubically for
another window. Without fine-tuning it is then evaluated on images of 1.5 and 2 times the side: with the window grown
along, as the paper does, and with the window unchanged, which tells what the size alone does. What is evaluated is the
end of the training, not its best epoch.

--signs is a folder of photographs in ImageNet's layout, --sample one that `swinv2-tasks sample-data FOLDER` wrote; they
are what the epochs were chosen for. Trainings and evaluations that are finished are not run again, one that was killed
is resumed. Written to the output folder: runs.csv, a row per training and setting; table.md, means and standard
deviations over the seeds; transfer.png. How strong a position bias is after training is measured by its standard
deviation over the pairs of tokens in a window, in logits, averaged over heads and blocks.

--reduced tries the whole way in a minute or two, with one seed and trainings too short to learn anything; it writes
data of its own where none is named.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure

from benchmarks.measuring import parse_settings
from swinv2_tasks import tasks
from swinv2_tasks.cli import tasks_cli
from swinv2_tasks.commands.sample_data import sample_data
from swinv2_tasks.commands.sweep.sweep import Setting, sweep
from swinv2_tasks.commands.sweep.validation_process import Measurement
from swinv2_tasks.weights.files import read_checkpoint

BIASES = {"LogCPB": "log CPB", "LinearCPB": "linear CPB", "BiasTable": "table, bicubic"}
"""Classes of swinv2_tasks.backbone, and the paper's names of them."""

WINDOW = 4
"""The window trained with."""


@dataclass(frozen=True)
class Study:
    """What is trained for a task, and what is measured.

    Attributes:
        config: a shipped config.
        arguments: what differs from it.
        epochs: length of the training.
        metric: what is measured.
        size: side of the images in training or, where proportions are kept, in the first evaluation.
    """

    config: str
    arguments: tuple[str, ...]
    epochs: int
    metric: str
    size: int

    @property
    def settings(self) -> list[Setting]:
        """The trained window and size; larger sizes with the window grown along, then with the window unchanged."""
        factors = (1.5, 2.0)
        grown = [Setting(int(WINDOW * factor), int(self.size * factor)) for factor in factors]
        return [Setting(WINDOW, self.size), *grown, *(Setting(WINDOW, setting.size) for setting in grown)]


STUDIES = {
    "signs": Study(
        "demo_imagenet.yaml",
        (
            *("--data.augmentation.horizontal_flip=0.0", "--model.backbone.init_args.embed_dim=24"),
            *("--trainer.gradient_clip_val=5.0", "--model.optimizer.lr=3e-3", "--model.schedule.warmup_epochs=4"),
        ),
        40,
        "val/top1",
        64,
    ),
    "segmentation": Study(
        "demo_ade20k.yaml", (f"--model.backbone.init_args.window_size={WINDOW}",), 20, "val/miou", 112
    ),
    "detection": Study("demo_coco.yaml", (f"--model.backbone.init_args.window_size={WINDOW}",), 4, "val/box_ap", 120),
}

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


class Run(NamedTuple):
    """A training at a setting: the metric's value, and the deviation of its position bias."""

    task: str
    bias: str
    seed: int
    window: int
    size: int
    value: float
    deviation: float


def train(study: Study, bias: str, seed: int, arguments: Sequence[str], runs: Path, name: str) -> Path:
    """Trains, or resumes a training that stopped, unless it is finished; the folder of the run."""
    folder = runs / name / "0"
    if (folder / "weights.safetensors").is_file():  # written at the end
        return folder
    if any(folder.glob("checkpoints/*.ckpt")):
        tasks_cli.run("fit", [f"--resume={folder}"])
        return folder
    paths = [f"--config={study.config}", f"--runs={runs}", f"--name={name}", f"--seed_everything={seed}"]
    length = [f"--trainer.max_epochs={study.epochs}", f"--trainer.check_val_every_n_epoch={study.epochs}"]
    bias_arguments = [f"--model.backbone.init_args.position_bias=swinv2_tasks.backbone.{bias}", "--data.num_workers=0"]
    tasks_cli.run("fit", [*paths, *ON_CPU, *study.arguments, *length, *bias_arguments, *arguments])
    return folder


@torch.no_grad()
def measure_bias_deviation(checkpoint: Path) -> float:
    """Standard deviation of the position bias over the pairs of tokens in a window, mean over heads and blocks."""
    task_class = read_checkpoint(checkpoint).contents["swinv2_tasks"]["task"]["class"]
    backbone = getattr(tasks, task_class).load_from_checkpoint(checkpoint).backbone
    deviations = []
    for stage, pretrained in zip(backbone.layers, backbone.pretrained_window_size, strict=True):
        # Each (heads, tokens, tokens).
        biases = [block.attn.cpb_mlp(stage.window_size, pretrained) for block in stage.blocks]
        deviations += [float(bias.std(dim=(1, 2)).mean()) for bias in biases]
    return statistics.mean(deviations)


def train_and_evaluate(task: str, bias: str, seed: int, data: Sequence[str], output: Path, reduced: bool) -> list[Run]:
    """Trains once and evaluates at all settings."""
    study = STUDIES[task]
    settings = study.settings[:2] if reduced else study.settings
    short = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.limit_train_batches=2"]
    few = ["--trainer.limit_val_batches=2"]
    arguments = [*data, *short, *few, "--trainer.log_every_n_steps=1"] if reduced else data
    folder = train(study, bias, seed, arguments, output / "trained", f"{task}-{bias}-{seed}")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    deviation = measure_bias_deviation(checkpoint)
    outcomes = sweep([f"--ckpt_path={checkpoint}", *ON_CPU, *(few if reduced else ())], settings)
    values = {
        setting: result.metrics[study.metric] for setting, result in outcomes.items() if isinstance(result, Measurement)
    }
    return [Run(task, bias, seed, *setting, value, deviation) for setting, value in values.items()]


def select_runs(runs: Sequence[Run], task: str, bias: str, setting: Setting) -> list[Run]:
    """Those of all seeds at a setting."""
    return [run for run in runs if run[:2] == (task, bias) and run[3:5] == setting]


def compute_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; the deviation of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def list_settings(runs: Sequence[Run], task: str) -> list[Setting]:
    """The settings that a task was evaluated at, in order."""
    return [*dict.fromkeys(Setting(run.window, run.size) for run in runs if run.task == task)]


def format_table(runs: Sequence[Run]) -> str:
    """Markdown, a block per task: mean ± standard deviation of the metric in percent, and the strength of the bias."""
    lines = []
    for task in dict.fromkeys(run.task for run in runs):
        settings = list_settings(runs, task)
        metric = STUDIES[task].metric.removeprefix("val/")
        lines += [f"| {task}, {metric} (%) | {' | '.join(map(str, settings))} | bias |"]
        lines += ["|---|" + "---|" * len(settings) + "---|"]
        for bias in dict.fromkeys(run.bias for run in runs if run.task == task):
            by_setting = [[100 * run.value for run in select_runs(runs, task, bias, setting)] for setting in settings]
            cells = ["{:.1f} ± {:.1f}".format(*compute_spread(values)) for values in by_setting]
            deviations = [run.deviation for run in select_runs(runs, task, bias, settings[0])]
            cells.append("{:.2f} ± {:.2f}".format(*compute_spread(deviations)))
            lines.append(f"| {BIASES[bias]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw_figure(runs: Sequence[Run], path: Path) -> None:
    """Plots each task's metric over the size: solid with the window grown along, dashed with the window unchanged."""
    names = [*dict.fromkeys(run.task for run in runs)]
    figure = Figure(figsize=(4.4 * len(names), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        settings = list_settings(runs, task)
        own, larger = settings[0], settings[1:]
        lines = {
            "-": [own, *(setting for setting in larger if setting.window != WINDOW)],
            "--": [own, *(setting for setting in larger if setting.window == WINDOW)],
        }
        for number, (bias, label) in enumerate(BIASES.items()):
            for style, line in lines.items():
                by_setting = [[100 * run.value for run in select_runs(runs, task, bias, setting)] for setting in line]
                means, deviations = zip(*map(compute_spread, by_setting), strict=True)
                style_options: dict[str, Any] = {"color": f"C{number}", "linestyle": style, "marker": "o", "capsize": 3}
                shift = (number - 1) * own.size / 60  # bars beside each other
                axes.errorbar(
                    [setting.size + shift for setting in line],
                    means,
                    deviations,
                    label=label if style == "-" else None,
                    **style_options,
                )
        sizes = dict.fromkeys(setting.size for setting in settings)
        grown = {setting.size: setting.window for setting in lines["-"]}
        axes.set_xticks([*sizes], [f"{size}\nwindow {grown[size]}" for size in sizes])
        axes.set(title=task, xlabel="image side in pixels", ylabel=f"{STUDIES[task].metric.removeprefix('val/')} (%)")
        axes.grid(alpha=0.3)
    figure.axes[0].plot([], [], "k--", label=f"window {WINDOW} as trained")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=80)


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Args:
        signs: folder of photographs of the layout of ImageNet.
        sample: folder of the sample data; written where none is named.
        tasks: what is trained.
        seeds: trainings of each position bias and task.
        output: folder of the runs and their tables.
        reduced: one seed, small data and few steps: whether it runs at all.
    """

    signs: str | None = None
    sample: str | None = None
    tasks: list[Literal["signs", "segmentation", "detection"]] = field(default_factory=lambda: [*STUDIES])
    seeds: int = 3
    output: str = "runs/transfer"
    reduced: bool = False


def main(settings: Settings) -> None:

    output = Path(settings.output)
    if settings.signs is None and not settings.reduced:
        sys.exit("--signs FOLDER: the photographs that the trainings are for")
    sample = Path(settings.sample or output / "sample")
    if settings.sample is None:
        sample_data(str(sample))
    scenes = sample / "ade20k"
    data = {
        "signs": [f"--data.root={settings.signs or sample / 'imagenet'}"],
        "segmentation": [f"--data.root={scenes}"],
        "detection": [f"--data.root={sample / 'coco'}"],
    }
    runs: list[Run] = []
    for seed in range(1 if settings.reduced else settings.seeds):
        for task in settings.tasks:
            for bias in BIASES:
                runs += train_and_evaluate(task, bias, seed, data[task], output, settings.reduced)
    with (output / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([Run._fields, *runs])
    (output / "table.md").write_text(format_table(runs))
    draw_figure(runs, output / "transfer.png")
    print(format_table(runs))


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
