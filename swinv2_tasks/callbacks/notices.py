"""What Lightning prints of each start: notices and warnings that nobody can act on, and advertisements."""

from __future__ import annotations

import logging
import warnings

from PIL.Image import DecompressionBombWarning

from swinv2_tasks.text import printable_lines

NOTICES = (
    "Seed set to",
    "GPU available",
    "TPU available",
    "HPU available",
    "LOCAL_RANK: ",
    "You are using a CUDA device",
    "Using 16bit Automatic",
    "Using bfloat16 Automatic",
    "Initializing distributed: GLOBAL_RANK",
    "distributed_backend=",
    "Restoring states",
    "Restored all states",
    "Loaded model weights",
    "`Trainer.fit` stopped: `max_",
    "`Trainer(limit_",
    "`Trainer(val_check_interval=",
    "Detected KeyboardInterrupt",
    "Trainer already configured with model summary",
    "The following callbacks returned in",
)
"""How messages begin that say what is so in every run, or what the console says anyway."""

ADVERTISEMENTS = ("Tip: ", "litlogger", "litmodels")
"""What advertisements for services contain."""

WARNINGS = (
    "LightningCLI's args parameter is intended",
    "Be aware that when using `ckpt_path`, callbacks used to create",
    ".*isinstance\\(treespec, LeafSpec\\)",
    "It is recommended to use `self.log\\('(val|test)/",  # they are in sync
    "FSDP2-wrapped module .* returned a view",  # nothing writes into maps
    ".*WeightAveraging callback with a model that overrides",
    "Experiment logs directory .* exists and is not empty",
    "Checkpoint directory .* exists and is not empty",
    "The number of training batches \\(\\d+\\) is smaller than the logging interval",  # the console shows them all
)
"""Warnings about Lightning's own code."""

LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)
"""What writes the notices."""


def quiet_lightning() -> None:
    """Leaves Lightning's notices of every start and its advertisements out of its logs."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_no_notice)


def filter_warnings() -> None:
    """Hides warnings about Lightning's own code, and of what is refused later: nothing that a user could act on."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DecompressionBombWarning)  # of half the pixels that are allowed


def _is_no_notice(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    record.msg, record.args = printable_lines(text), ()  # Lightning's messages name files, and what checkpoints say
    message = text.strip()
    return not message.startswith(NOTICES) and not any(word in message for word in ADVERTISEMENTS)
