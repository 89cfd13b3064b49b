"""Writing Swin V2 weights in six formats, with the windows that they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from swinv2_tasks.backbone.position_bias import BiasTable, LogCPB
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights.files import write_folder, write_pickle, write_safetensors
from swinv2_tasks.weights.formats import Format, State, describe_variant, find_unsupported_keys, from_official
from swinv2_tasks.weights.modules import backbone_of, own_state
from swinv2_tasks.weights.windows import (
    ImageSize,
    Windows,
    huggingface_config,
    position_buffers,
    show_windows,
    windows_of,
)


def save_weights(
    module: nn.Module, path: str | PathLike[str], *, format: Format = "official", image_size: ImageSize | None = None
) -> list[str]:
    """Writes a backbone, or a task's backbone and head, as one of the six formats has it.

    Args:
        module: as for ``load_weights``.
        path: the file, safetensors if the name ends so; for "huggingface" the folder.
        format: whose names and wrappers to write.
        image_size: pixels that the model was trained at. With it, stages whose map is smaller than the window, and
            those without a window of pre-training, are written with the window in effect; without it, as set.

    Returns:
        Official names of tensors that the format does not support: of a SimMIM decoder in timm, say.

    Raises:
        UserError: when the format cannot hold the model: extra norms, bias tables, uneven windows.
    """
    backbone = backbone_of(module)
    state = own_state(module)
    return write_checkpoint(
        state, path, format, checkpoint_record(backbone, image_size), windows_of(backbone, image_size), image_size
    )


def checkpoint_record(backbone: SwinTransformerV2, image_size: ImageSize | None = None) -> dict[str, Any]:
    """What this package's checkpoints say under "swinv2_tasks": windows at the training size, kind of position bias."""
    windows = windows_of(backbone, image_size).record()
    return {"windows": windows, "position_bias": backbone.position_bias.__name__}


def write_checkpoint(
    state: State,
    path: str | PathLike[str],
    format: Format,
    record: Mapping[str, Any],
    windows: Windows | None,
    image_size: ImageSize | None = None,
) -> list[str]:
    """Writes an official state dict in ``format``, atomically; returns the names that it does not support.

    Buffers that ``state`` lacks are computed from ``windows`` where the format has them.

    Raises:
        UserError: when the format cannot hold the model, or needs windows that are not known.
    """
    path = Path(path)
    variant = describe_variant(state)
    bias = record.get("position_bias", LogCPB.__name__)
    if bias not in (LogCPB.__name__, BiasTable.__name__) and format != "lightning":
        raise UserError(f"the {format} format cannot say that the position bias is {bias}; lightning can")
    has_tables = any(name.endswith("relative_position_bias_table") for name in state)
    if windows is not None and format in _FORMATS_WITH_BUFFERS and not has_tables:
        state = position_buffers(windows, variant, image_size) | state
    if format == "torchvision" and windows is not None and len(set(windows.effective)) > 1:
        raise UserError(
            f"torchvision uses one window in every stage, the model {show_windows(windows.effective)}: it would attend "
            "to padding where the map is smaller. Choose another format."
        )
    tensors = {name: tensor.cpu().contiguous() for name, tensor in from_official(state, format).items()}
    if format == "huggingface":
        if windows is None:
            raise UserError("the huggingface format states the windows; name window_size and image_size")
        write_folder(path, tensors, huggingface_config(windows, variant, state, image_size))
    elif path.suffix == ".safetensors":
        write_safetensors(path, tensors, record)
    elif format == "lightning":
        write_pickle(path, {"state_dict": tensors, "swinv2_tasks": dict(record)})
    else:
        write_pickle(path, {"model": tensors} if format in ("official", "simmim") else tensors)
    return find_unsupported_keys(state, format)


_FORMATS_WITH_BUFFERS = ("official", "simmim", "torchvision")
