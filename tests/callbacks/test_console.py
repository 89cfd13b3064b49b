"""What a run prints, read as a person reads it: before the first number, of each validation, at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from swinv2_tasks.callbacks import Console
from swinv2_tasks.cli.main import main
from tests.helpers.tiny import BACKBONE
from tests.helpers.tiny_tasks import TINY_TASKS, TWO_TASKS

NOISE = (
    "FLOPs",
    "TPU",
    "GPU available",
    "Seed set",
    "Restoring",
    "Loaded model",
    "litlogger",
    "Tip:",
    "Warning",
    "warning",
)
"""What nobody wants to read at each start."""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_in_terminal(arguments: list[str], folder: Path, columns: int = 80, rows: int = 24) -> tuple[str, int]:
    """Runs the command line in a pseudo-terminal; all that was written there, and the exit status."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "swinv2_tasks", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True
    )
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while part := os.read(controller, 65536):
            written += part
    os.close(controller)
    return written.decode(), process.wait(timeout=300)


def lasting_lines(written: str) -> list[str]:
    """The lines that stay in a terminal: of those that were written over, the last."""
    lines = ESCAPES.sub("", written.replace("\r\n", "\n")).split("\n")
    return [line.rpartition("\r")[2] for line in lines]


def lines_before_the_first_number(lines: list[str]) -> int:
    """Lines before the first that says a loss or a score."""
    return next(k for k, line in enumerate(lines) if re.match(r"(epoch|step|validation|testing|test) ", line))


@pytest.fixture(scope="module")
def terminal_fit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a training of two epochs writes into a terminal, and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("terminal")
    task = TINY_TASKS["classification"]
    data = task.write_data(folder / "data")
    task.config(folder, data, name="mine", trainer={"max_epochs": 2, "enable_progress_bar": True})
    written, status = run_in_terminal(["fit", "--config=config.yaml"], folder)
    assert status == 0, written
    return written, folder


def test_a_training_in_a_terminal(terminal_fit: tuple[str, Path]) -> None:
    written, folder = terminal_fit
    lines = lasting_lines(written)
    assert not [word for word in NOISE if word in written]
    assert lines_before_the_first_number(lines) <= 12

    labels = [line.split()[0] for line in lines if line.startswith("  ")]
    for label in ("task", "backbone", "parameters", "data", "batch", "optimizer", "precision", "run"):
        assert labels.count(label) == 1, lines
    validations = [line for line in lines if "validation  " in line]
    assert [line.split()[1] for line in validations] == ["1/2", "2/2"]
    assert all(re.search(r"top1 [01]\.\d{3,4}\b", line) for line in validations)

    checkpoint = "runs/mine/0"  # which stands for the best one
    assert (folder / checkpoint / "checkpoints" / "best.ckpt").is_file()
    commands = [line.strip() for line in lines if line.strip().startswith("swinv2-tasks ")]
    assert commands[-2] == f"swinv2-tasks validate --ckpt_path {checkpoint}"
    assert commands[-1].startswith(f"swinv2-tasks predict --ckpt_path {checkpoint} --data.source ")
    assert Path(commands[-1].split()[-1]).is_file() or (folder / commands[-1].split()[-1]).is_file()


def test_the_line_that_moves_shows_the_time_left_and_is_gone_at_the_end(terminal_fit: tuple[str, Path]) -> None:
    written, _ = terminal_fit
    moving = [text for text in re.split(r"[\r\n]", ESCAPES.sub("", written)) if " % " in text]
    assert moving and all(len(text) < 80 for text in moving)
    assert any(re.search(r"epoch 1/2 .* left", text) for text in moving)
    assert not [line for line in lasting_lines(written) if " % " in line]
    assert "\x1b[?25l" not in written  # the cursor was never hidden


def test_first_words_come_before_torch_is_loaded(terminal_fit: tuple[str, Path]) -> None:
    written, _ = terminal_fit
    assert lasting_lines(written)[0] == "swinv2-tasks fit: loading PyTorch …"


@pytest.mark.slow
def test_validations_and_predictions_in_a_terminal(terminal_fit: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = terminal_fit
    checkpoint = "--ckpt_path=runs/mine/0/checkpoints/best.ckpt"
    written, status = run_in_terminal(["validate", checkpoint], folder)
    assert status == 0 and not [word for word in NOISE if word in written]
    assert lines_before_the_first_number(lasting_lines(written)) <= 12
    assert len(re.findall(r"top1 ", written)) == 1

    source = f"--data.source={folder / 'data' / 'val'}"
    written, status = run_in_terminal(["predict", checkpoint, source, f"--output={tmp_path / 'out'}"], folder, 120, 40)
    assert status == 0 and not [word for word in NOISE if word in written]
    printed = [line.rpartition(": ")[2] for line in lasting_lines(written) if line.startswith(("contact", "12 pred"))]
    assert all(Path(path).is_file() for path in printed)


@pytest.mark.parametrize("name", TWO_TASKS)
def test_without_a_terminal_there_is_a_line_per_epoch_and_per_validation(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = TINY_TASKS[name]
    data = task.write_data(tmp_path / "data")
    trainer = {"max_epochs": 3, "check_val_every_n_epoch": 1, "enable_progress_bar": True}
    config = task.config(tmp_path, data, trainer=trainer)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 0

    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert not [word for word in NOISE if word in captured.out + captured.err]
    assert lines_before_the_first_number(lines) <= 12
    epochs = [line for line in lines if re.match(r"epoch \d/3  step", line)]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert all(re.search(r"loss \S+", line) and line.endswith(" left") for line in epochs)
    validations = [line for line in lines if re.match(r"epoch \d/3  validation", line)]
    assert len(validations) == 3
    assert "\x1b" not in captured.out and "\r" not in captured.out


def test_a_training_counted_in_steps_says_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = TINY_TASKS["classification"]
    config = task.config(tmp_path, task.write_data(tmp_path / "data"), trainer={"max_epochs": -1, "max_steps": 7})
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("step 7/7")]
    assert [line for line in lines if line.startswith("done in ") and "7 steps" in line]


class Images(torch.utils.data.Dataset):
    """Eight random images of two classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.randn(3, 32, 32, generator=generator), "label": torch.tensor(index % 2)}


def test_in_plain_python_with_anybodys_loaders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from swinv2_tasks import ClassificationTask, SwinTransformerV2

    task = ClassificationTask(SwinTransformerV2(**BACKBONE), num_classes=2)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[Console()],
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader(Images(), batch_size=4), DataLoader(Images(), batch_size=4))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines_before_the_first_number(lines) <= 12
    assert [line for line in lines if line.startswith("  task ") and "classification, 2 classes" in line]
    assert [line for line in lines if line.startswith("  data ") and "8 training, 8 validation" in line]
    assert not [word for word in ("FLOPs", "| Name", "Metric") if word in captured.out + captured.err]

    trainer.validate(task, DataLoader(Images(), batch_size=4), verbose=False)
    assert "top1 " in capsys.readouterr().out


def test_a_task_that_is_not_of_this_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=1, accelerator="cpu", logger=False,
        default_root_dir=tmp_path, callbacks=[Console()], enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(BoringModel())
    lines = capsys.readouterr().out.splitlines()
    assert lines_before_the_first_number(lines) <= 12
    assert lines[-1].startswith("done in ")
