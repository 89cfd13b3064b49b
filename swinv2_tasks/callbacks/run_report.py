"""The report of a run, written as it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.callbacks.opening import short_path
from swinv2_tasks.errors import Interrupted, UserError
from swinv2_tasks.text import say

REPORT = "report.html"
"""The page, in the run's folder."""

log = logging.getLogger("swinv2_tasks")


class RunReport(Callback):
    """Has the report written at the end of fit, validate and test, and when a training is interrupted.

    A report that cannot be written is said, and ends nothing: what it shows is in the run's files.

    Args:
        folder: the run's folder.
        write: writes the report of a run, given its folder.
    """

    def __init__(self, folder: Path, write: Callable[[Path], None]) -> None:
        self.folder, self.write = folder, write

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the report of a run that ended: by now all others have written what it shows."""
        if stage in ("fit", "validate", "test"):
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the report of a training that was interrupted after its first step."""
        if isinstance(exception, KeyboardInterrupt | Interrupted) and trainer.state.fn == "fit" and trainer.global_step:
            self._write(trainer)
            if trainer.is_global_zero:
                say(f"report: {short_path(self.folder / REPORT)}")

    def _write(self, trainer: Any) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self.write(self.folder)
        except (UserError, OSError) as error:
            log.warning("the report of this run was not written: %s", error)
