"""``swinv2-tasks weights inspect FILE`` and ``swinv2-tasks weights convert IN OUT --format timm``.

Formats and windows: https://arxiv.org/abs/2111.09883 and ``swinv2_tasks.weights``.
"""

from __future__ import annotations

from pathlib import Path

from swinv2_tasks.backbone.position_bias import BiasTable, LogCPB
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say
from swinv2_tasks.weights.files import read_checkpoint
from swinv2_tasks.weights.formats import (
    Format,
    State,
    describe_variant,
    detect_format,
    from_official,
    is_buffer,
    some,
    to_official,
)
from swinv2_tasks.weights.loading import check_official, find_incompatible_keys, resolve_windows
from swinv2_tasks.weights.runs import find_checkpoint, is_run
from swinv2_tasks.weights.saving import write_checkpoint
from swinv2_tasks.weights.windows import Windows, backbone_on_meta_device, find_windows, show_window


def inspect(file: str) -> None:
    """Prints what a checkpoint is: format, variant, windows, head and names that do not fit. Nothing in it is run.

    Args:
        file: a .pth, .ckpt or .safetensors file, a folder with weights and config.json, a sharded checkpoint, or the
            folder of a run, which stands for its best checkpoint.
    """
    file = _find_file(file)
    checkpoint = read_checkpoint(file)
    format, state = _official(checkpoint.state, file)
    variant = describe_variant(state)
    origin = find_windows(checkpoint, state, variant)

    learned = {name: tensor for name, tensor in state.items() if not is_buffer(name)}
    own = from_official(learned, "lightning")
    in_backbone = sum(tensor.numel() for name, tensor in own.items() if name.startswith("backbone."))
    in_all = sum(tensor.numel() for tensor in learned.values())
    precisions = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in learned.values()})

    rows = [
        ("file", file),
        ("format", format),
        ("variant", str(variant)),
        ("parameters", f"{in_backbone:,} in the backbone, {in_all:,} in all"),
        ("precision", ", ".join(precisions)),
        ("head", f"{len(state['head.weight'])} classes" if "head.weight" in state else "none for classification"),
        ("windows", f"pre-training → last trained with, from {origin[1]}" if origin else _NO_WINDOWS),
        *(_window_rows(origin[0]) if origin else []),
    ]

    has_tables = any(name.endswith("relative_position_bias_table") for name in state)
    window = origin[0].effective if origin else 8
    expected = backbone_on_meta_device(variant, window, BiasTable if has_tables else LogCPB)
    names = {f"backbone.{name}": tensor for name, tensor in expected.state_dict().items()}
    rows.append(("do not fit", "; ".join(find_incompatible_keys(own, names)) or "none"))

    other_names = [name for name in own if not name.startswith(("backbone.", "head."))]
    if other_names:
        rows.append(("other names", f"{len(other_names)}: {some(other_names)}"))
    _print(rows)


_NO_WINDOWS = "not stated; say what it was trained at when loading: window_size and image_size"


def convert(
    source: str,
    target: str,
    format: Format = "official",
    window_size: int | None = None,
    image_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint in another format, its tensors bitwise identical. Optimizer states and the like are left out.

    Args:
        source: a .pth, .ckpt or .safetensors file, a folder with weights and config.json, a sharded checkpoint, or the
            folder of a run, which stands for its best checkpoint.
        target: the file to write, as safetensors if its name ends so; for huggingface a folder.
        format: official, simmim, timm, huggingface, torchvision or lightning.
        window_size: window that the checkpoint was trained at, where the file does not say.
        image_size: pixels that it was trained at, where the file does not say.
        overwrite: replace a target that exists.
    """
    if Path(target).exists() and not overwrite:
        raise UserError(f"{target} exists; name another target, or set --overwrite true")
    source = _find_file(source)
    checkpoint = read_checkpoint(source)
    source_format, state = _official(checkpoint.state, source)
    variant = describe_variant(state)
    origin = resolve_windows(checkpoint, state, variant, window_size, image_size)
    windows = origin[0] if origin else None
    record = dict(checkpoint.record) | ({"windows": windows.record()} if windows else {})
    unsupported = write_checkpoint(state, target, format, record, windows, image_size)
    rows = [
        ("converted", f"{source} ({source_format}) → {target} ({format})"),
        ("variant", str(variant)),
        ("windows", f"pre-training → last trained with, {origin[1]}" if origin else _NO_WINDOWS),
        *(_window_rows(windows) if windows else []),
    ]
    if unsupported:
        rows.append(("left out", f"{len(unsupported)} that {format} does not support: {some(unsupported)}"))
    _print(rows)


def _find_file(path: str) -> str:
    """The checkpoint that a run's folder stands for, which is printed; any other path unchanged."""
    if not is_run(Path(path)):
        return path
    checkpoint, message = find_checkpoint(Path(path))
    say(printable(message))
    return str(checkpoint)


def _official(state: State, source: str) -> tuple[Format, State]:
    try:
        format = detect_format(state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    official = to_official(state, format)
    check_official(official, source)
    return format, official


def _window_rows(windows: Windows) -> list[tuple[str, str]]:
    pairs = zip(windows.pretrained, windows.effective, strict=True)
    return [
        (f"  stage {stage}", f"{show_window(pretrained)} → {show_window(effective)}")
        for stage, (pretrained, effective) in enumerate(pairs, start=1)
    ]


def _print(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        say(f"{name:12}{printable(value)}")
