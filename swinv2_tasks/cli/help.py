"""Screens of help, written by hand."""

USAGES = {
    "memory": "swinv2-tasks memory --config CONFIG [--gpu 24GiB]",
    "sweep": "swinv2-tasks sweep --ckpt_path CKPT --windows 8 16 --sizes 256 512",
    "score ade20k": "swinv2-tasks score ade20k --annotations DIR --predictions DIR",
    "score coco": "swinv2-tasks score coco --annotations FILE --predictions FILE",
    "weights inspect": "swinv2-tasks weights inspect FILE",
    "weights convert": "swinv2-tasks weights convert SOURCE TARGET --format timm",
    "data check": "swinv2-tasks data check kinetics FOLDER",
    "data optimize": "swinv2-tasks data optimize imagenet FOLDER OUTPUT",
    "sample-data": "swinv2-tasks sample-data FOLDER",
    "demo": "swinv2-tasks demo [--short true]",
    "configs": "swinv2-tasks configs",
}
"""How each command is typed."""
