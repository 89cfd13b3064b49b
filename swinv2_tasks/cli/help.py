"""Screens of help, written by hand: they appear at once, since nothing that they describe is imported for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from swinv2_tasks.cli.arguments import find_configs, name_positional, split_options, values_of
from swinv2_tasks.cli.config_files import flat_settings, merge_settings, named_task, plain_settings, read_config
from swinv2_tasks.cli.settings import show_value

USAGES = {
    "report": "swinv2-tasks report RUN",
    "compare": "swinv2-tasks compare RUN RUN …",
    "memory": "swinv2-tasks memory --config CONFIG [--gpu 24GiB]",
    "sweep": "swinv2-tasks sweep --ckpt_path CKPT --windows 8 16 --sizes 256 512",
    "score ade20k": "swinv2-tasks score ade20k --annotations DIR --predictions DIR",
    "score coco": "swinv2-tasks score coco --annotations FILE --predictions FILE",
    "weights inspect": "swinv2-tasks weights inspect FILE",
    "weights convert": "swinv2-tasks weights convert SOURCE TARGET --format timm",
    "data check": "swinv2-tasks data check TASK FOLDER",
    "data browse": "swinv2-tasks data browse TASK FOLDER [--augmented]",
    "data convert": "swinv2-tasks data convert FOLDER OUTPUT --to LAYOUT",
    "data optimize": "swinv2-tasks data optimize imagenet FOLDER OUTPUT",
    "sample-data": "swinv2-tasks sample-data FOLDER",
    "demo": "swinv2-tasks demo [--short true]",
    "configs": "swinv2-tasks configs",
}
"""How each command is typed."""

SCREENS = {
    "report": """
One page of what a run has learned: scores, learning curves, tables, figures
and examples. fit, validate and test write it by themselves (--report false:
not), as report.html in the run's folder.

  RUN                  folder of a run, as runs/imagenet/0
  --output FILE        the page; default: report.html in the run's folder
  --attention true     adds where the model looks: Grad-CAM of mistakes and of
                       right predictions; loads the model and reads files
  --bias true          adds the position bias of the trained and the present
                       windows; loads the model""",
    "compare": """
One page of how runs differ: settings, scores, learning curves, classes with
intervals of the differences, and samples that one of two runs gets right.

  RUN RUN …            folders of two runs or more, as runs/a/0 runs/b/0
  --output FILE        the page; default: compare.html""",
    "memory": """
What a training takes of a GPU's memory, and what would make it fit, without
running it. Nothing is read but class lists.

  --gpu SIZE           memory to fit into: 24GiB, 80GB, or a name such as H100
  --device cuda|cpu    type of the device that trains; default: cuda
  --processes N        processes of the training; default: as in the config
  --num_classes N      number of classes, where there is no dataset to count
  --json FILE          write the figures to a file as well, in bytes

All other options are those of fit: swinv2-tasks fit --help""",
    "sweep": """
Metric, speed and memory of a trained model at many windows and image sizes.

  --windows N N …      window sides in tokens; each goes with each size
  --sizes N N …        image sides in pixels; the short one where images keep
                       their proportions
  --settings N@N …     instead of both: WINDOW@SIZE, as in 8@256 16@512
  --output DIR         for sweep.csv and sweep.png; default: sweep in the run

All other options are those of validate: swinv2-tasks validate --help""",
    "score ade20k": """
Mean IoU, accuracies and a table of classes for label maps that lie on disk:
PNG files of the same names and sizes in two folders, subfolders included.

  --annotations DIR    annotated label maps
  --predictions DIR    predicted label maps
  --class_names FILE   a name per line, or a table like objectInfo150.txt;
                       default: ADE20K's 150 classes
  --json FILE          write the scores to a file as well

What the values mean, as in the settings of a training's data:
  --background ignore|class   whether 0 is left out, or the first class
  --ignore_label N            further values that are left out, as in [254,255]
  --label_values MAP          instead: the class of each value, as in
                              '{0: sky, 255: road}'
  --palette FILE              label maps hold colors: R G B or R G B NAME lines""",
    "score coco": """
COCO's twelve numbers for boxes and masks, and a table of classes.

  --annotations FILE   in COCO's format
  --predictions FILE   detections as COCO takes submissions: a JSON list
  --iou-type bbox segm what is scored; default: all that the files hold
  --backend NAME       pycocotools, or faster_coco_eval of the extra `fast`
  --max-dets N         detections that count of an image and class; default: 100
  --json FILE          write the scores to a file as well""",
    "weights inspect": """
What a checkpoint is: format, variant, windows, head and names that do not fit.
Nothing in it is run.

  FILE                 .pth, .ckpt, .safetensors, a sharded checkpoint, a folder
                       with weights and config.json, or a run: its best one""",
    "weights convert": """
Writes a checkpoint in another format, its tensors bitwise identical.

  SOURCE               .pth, .ckpt, .safetensors, a sharded checkpoint, a folder
                       with weights and config.json, or a run: its best one
  TARGET               file to write, as safetensors if its name ends so; for
                       huggingface a folder
  --format NAME        official, simmim, timm, huggingface, torchvision or
                       lightning; default: official
  --window_size N      window of its training, where the file does not say
  --image_size N       pixels of its training, where the file does not say
  --overwrite true     replace a target that exists""",
    "data check": """
Looks for what is wrong in a dataset: corrupt files, copies within and across
splits, classes without samples, boxes and masks that do not fit, odd sizes.
Run again, it reads what is new or has changed since. Exit status: 0 no errors,
1 errors, 2 refused arguments.

  TASK FOLDER          imagenet, coco, ade20k, kinetics or simmim; the dataset
  --output DIR         for check.html and check.json; default: check/NAME
  --json FILE          write the findings to this file as well
  --workers N          processes that read; default: one per core
  --seconds N          after which a file counts as hung; default: 120
  --class_names FILE   class list or label map
  --config CONFIG      settings of the data, as of fit
  --data.KEY VALUE     a setting of the data, as --data.layout voc

kinetics also writes lists of the videos that decode and of those that fail, to
the dataset's folder unless --output names another. Where the videos are:
  --files.train_list FILE  (val_list, test_list)     lists of videos
  --files.train_videos DIR (val_videos, test_videos) folders of videos""",
    "data browse": """
Writes browse.html, a page of samples with their labels drawn, spread over the
classes. The dataset is not changed, and the page requests nothing. Exit status:
0, 1 if samples cannot be read, which the page shows, 2 refused arguments.

  TASK FOLDER          imagenet, coco, ade20k, kinetics or simmim; the dataset
  --augmented          training samples as the model gets them, 4 draws of each
  --split SPLIT        train, val or test alone
  --number N           samples of each split, up to 200; default: 24
  --class NAME         samples that show this class alone; its name or its id
  --seed N             other samples, and other random draws; default: 0
  --output DIR         for browse.html; default: browse/NAME
  --json FILE          list the samples and their labels in a file as well
  --config CONFIG      settings of the data, as of fit; default: the task's
  --data.KEY VALUE     a setting of the data, as --data.layout voc""",
    "data convert": """
Writes a dataset in another layout of its task. Images are copied, labels are
written anew; what the other layout cannot say is left out, which is printed.

  FOLDER               the dataset, of any layout that is read
  OUTPUT               folder to write, new or empty
  --to LAYOUT          objects as coco, yolo or voc; scenes as ade20k; labeled
                       images as csv
  --links true         links to the images instead of copies
  --config CONFIG      settings of the data, as of fit
  --data.KEY VALUE     a setting of the data, as --data.layout voc""",
    "data optimize": """
Packs images into a few large files, to be streamed; data.root may name them.
Their bytes stay unchanged. Run again after an interruption, it resumes.

  imagenet FOLDER      the dataset
  OUTPUT               folder to write train/ and val/ to
  --workers N          processes that read and write; default: one per core
  --shard_mb N         size of a file in 10⁶ bytes; default: 64
  --skip_faulty true   leave out images that cannot be read
  --class_names FILE   class list
  --train_dir DIR      folder of training classes; default: train
  --val_dir DIR        folder of validation classes; default: val
  --val_list FILE      list of validation images""",
    "sample-data": """
Writes small synthetic datasets in the formats of ImageNet, COCO, ADE20K and
Kinetics.

  FOLDER               to write, new or empty; one that holds these data stays
  --seed N             from 0; the same seed gives the same files""",
    "demo": """
Writes the sample data, trains a very small Swin V2 on each task, evaluates it
and draws its predictions, in minutes on a CPU.

  --data DIR           folder of the sample data; default: data/sample
  --runs DIR           folder of the runs and their figures; default: runs
  --short true         six steps of each, to see whether everything works""",
    "configs": """
Lists all configs that --config can name, with what each is.""",
}
"""What each command does, and its own options."""

# ---- fit, validate, test and predict

PURPOSES = {
    "fit": "Trains a model, and evaluates it after each epoch",
    "validate": "Evaluates a model on the validation data",
    "test": "Evaluates a model on the test data",
    "predict": "Predicts files: tables, and drawings of what was found",
}

EXAMPLES = {
    "fit": (
        "--config imagenet.yaml --data.root data/imagenet --name mine",
        "--config coco.yaml --config overlays/small_coco.yaml",
        "--resume runs/imagenet/3",
    ),
    "validate": (
        "--ckpt_path runs/imagenet",
        "--ckpt_path best.ckpt --data.root elsewhere",
        "--config imagenet.yaml --model.weights weights.pth",
    ),
    "test": (
        "--ckpt_path runs/kinetics",
        "--ckpt_path best.ckpt --data.root elsewhere",
        "--config kinetics.yaml --model.weights weights.pth",
    ),
    "predict": (
        "--ckpt_path runs/imagenet --data.source photo.jpg",
        "--ckpt_path best.ckpt --data.source '*.jpg' --output out",
        "--config imagenet.yaml --model.weights weights.pth \\\n      --data.source photos/",
    ),
}

SETTINGS = {
    "config CONFIG": "a task's config, then overlays over it",
    "resume RUN": "continue a run, exactly where it was",
    "ckpt_path FILE": "checkpoint, or a run: its best one",
    "data.source FILES": "file, folder or quoted pattern to predict",
    "output DIR": "where results go; default: a new one in --runs",
    "name NAME": "the run's folder in --runs",
    "runs DIR": "folder of all runs; default: runs",
    "allow MODULE": "yours, of which configs may name classes",
    "seed_everything N": "seed of all random draws",
    "data.root DIR": "folder of the dataset",
    "data.batch_size N": "samples per process and step",
    "data.num_workers N": "processes that read; default: from cores",
    "model.weights FILE": "weights to start from, in any format",
    "model.backbone NAME": "swinv2_tiny, _small, _base, …",
    "model.backbone.window_size N": "window's side in tokens",
    "model.optimizer.lr N": "learning rate",
    "trainer.max_epochs N": "epochs; -1: until max_steps",
    "trainer.max_steps N": "steps; -1: until max_epochs",
    "trainer.precision NAME": "bf16-mixed, 32-true, 16-mixed",
    "trainer.accelerator NAME": "auto, gpu or cpu",
    "trainer.devices N": "number of GPUs, or auto for all",
}
"""Settings that matter, and their meaning in any task."""

TASK_SETTINGS = {
    "ClassificationTask": {
        "data.class_names FILE": "class list",
        "data.image_size N": "pixels of an image's side",
        "data.augmentation.mixup N": "strength of mixup; 0: none",
        "model.label_smoothing N": "share of the target over all classes",
    },
    "DetectionTask": {
        "data.class_names FILE": "class list",
        "data.resize [LONG,SHORT]": "sides of images in pixels",
        "model.detector NAME": "how objects are found",
        "model.detector.masks BOOL": "predict masks beside boxes",
        "model.schedule.milestones L": "epochs at which the rate falls",
    },
    "SegmentationTask": {
        "data.class_names FILE": "class list",
        "data.crop_size N": "pixels of a training crop's side",
        "data.background NAME": "what 0 is: ignore or class",
        "model.decoder NAME": "UPerNet, or your own",
        "model.inference.mode NAME": "whole or slide, over large images",
    },
    "VideoClassificationTask": {
        "data.class_names FILE": "class list",
        "data.image_size N": "pixels of a clip's side",
        "data.sampling.frames N": "frames of a clip",
        "data.sampling.stride N": "every how many frames one is taken",
        "data.views.test [N,N]": "clips × crops of a video in test",
    },
    "SimMIMTask": {
        "data.image_size N": "pixels of an image's side",
        "data.mask_ratio N": "share of the image that is masked",
        "data.mask_patch_size N": "pixels of a masked square's side",
    },
}
"""Those of each task."""

OF_TRAINING = {
    "resume RUN",
    "seed_everything N",
    "model.optimizer.lr N",
    "model.label_smoothing N",
    "model.schedule.milestones L",
    "data.augmentation.mixup N",
    "trainer.max_epochs N",
    "trainer.max_steps N",
}
"""Settings that say nothing to other commands than fit."""

OF_PREDICTION = {"data.source FILES"}
"""Settings that say nothing to other commands than predict."""

OF_EVALUATION = {"output DIR"}
"""Settings that say nothing to fit."""


def asks_for_screen(arguments: Sequence[str]) -> bool:
    """Whether arguments ask for a screen of help; ``--help-all`` and a class's help come from the parser."""
    return "-h" in arguments or "--help" in arguments


def command_screen(command: str) -> str:
    """The screen of a command or subcommand that has no configs of its own."""
    return f"usage: {USAGES[command]}\n{SCREENS[command]}"


def trainer_screen(command: str, arguments: Sequence[str]) -> str:
    """The screen of fit, validate, test or predict, with the values of the configs that arguments name.

    Raises:
        UserError: there is no such config.
    """
    others = [argument for argument in arguments if argument not in ("-h", "--help")]
    options = find_configs(name_positional(command, split_options(others)))
    configs = values_of(options, "--config")
    stated: Any = {}
    for config in configs:
        stated = merge_settings(stated, plain_settings(read_config(Path(config)) or {}))
    values = flat_settings(stated)

    names = ", ".join(Path(config).name for config in configs)
    title = shorten(f"Settings that matter [and their values in {names}]", 78, placeholder=" …]")
    lines = [f"usage: swinv2-tasks {command} OPTIONS", f"{PURPOSES[command]}.", ""]
    lines += [f"  swinv2-tasks {command} {example}" for example in EXAMPLES[command]]
    lines += ["", f"{title if configs else 'Settings that matter'}:"]
    for setting, meaning in shown_settings(command, named_task(stated)).items():
        lines.append(_describe(setting, meaning, values.get(setting.partition(" ")[0])))

    lines.append("")
    if not configs:
        lines.append(f"A task's own settings: swinv2-tasks {command} --config coco.yaml --help")
    lines.append("All settings: --help-all. All values: --config CONFIG --print_config")
    return "\n".join(lines)


def shown_settings(command: str, task: str | None) -> dict[str, str]:
    """The settings on the screen of a command, and their meanings.

    Args:
        command: fit, validate, test or predict.
        task: the class of the task; None, or that of another package, for the settings that any has.
    """
    hidden = OF_PREDICTION | OF_EVALUATION if command == "fit" else OF_TRAINING
    if command in ("validate", "test"):
        hidden = hidden | OF_PREDICTION
    settings = SETTINGS | TASK_SETTINGS.get(task or "", {})
    return {setting: meaning for setting, meaning in settings.items() if setting not in hidden}


def _describe(setting: str, meaning: str, value: Any) -> str:
    line = f"  --{setting:<29}{meaning}"
    if value is None:
        return line
    shown = show_value(value).removeprefix("swinv2_tasks.backbone.").removeprefix("swinv2_tasks.heads.")
    shown = shown if shown.startswith("[") else f"[{shown}]"
    return f"{line} {shown}" if len(line) + len(shown) < 80 else f"{line}\n{'':<33}{shown}"
