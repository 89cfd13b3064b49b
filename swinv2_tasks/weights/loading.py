"""Loading Swin V2 weights of six formats, and what a new window or resolution asks of them.

https://arxiv.org/abs/2111.09883, section 3.3. A checkpoint's position bias is a function of offsets measured in the
window of its pre-training; ``load_weights`` finds that window per stage and sets it, so that the model, whatever its
own window, evaluates the same function at its own offsets. V1-style tables are resized instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_tasks.backbone.position_bias import BiasTable, LogCPB, resize_bias_table
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2, WindowSize
from swinv2_tasks.backbone.window import Size
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import read_text
from swinv2_tasks.text import printable
from swinv2_tasks.weights.channels import RGB, adapt_channels
from swinv2_tasks.weights.files import Checkpoint, read_checkpoint
from swinv2_tasks.weights.formats import (
    Format,
    State,
    Variant,
    describe_variant,
    detect_format,
    from_official,
    is_buffer,
    some,
    to_official,
)
from swinv2_tasks.weights.inflation import inflate, inflate_variant, inflate_windows
from swinv2_tasks.weights.integrity import check_finite, check_types
from swinv2_tasks.weights.modules import backbone_of, name_prefix, named_tensors, own_state
from swinv2_tasks.weights.runs import checkpoint_of
from swinv2_tasks.weights.windows import (
    ImageSize,
    Windows,
    find_windows,
    show_window,
    show_windows,
    square_table_window,
    windows_at,
)

Source = str | PathLike[str] | Mapping[str, Any]


@dataclass
class LoadReport:
    """What ``load_weights`` did; ``str(report)`` is a short table.

    Attributes:
        source: the file, folder or dict.
        format: its format.
        variant: what the checkpoint is.
        loaded: tensors copied into the module.
        cast: types of tensors that are of another type in the file than in the module: ["float16"], say.
        renamed: how many of them have another name in the file.
        resized: names of bias tables that were resized.
        inflated: official names of image tensors that were given an axis in time.
        channels: how the kernels of RGB became those of the model's input channels; empty where nothing changed.
        randomly_initialized: names of the module's tensors that the checkpoint does not fit and that keep their values.
        unused: official names of the checkpoint's tensors that were not loaded.
        windows: per stage the window of pre-training (None: not known) and the window now.
        windows_source: what the windows of pre-training were read from.
        head: what became of the classification head.
        prefix: what stood before the checkpoint's names: "module.model.", say.
        other_states: entries of the file that hold weights as well and were not read: ["model_ema"], say.
    """

    source: str
    format: Format
    variant: Variant
    loaded: int
    renamed: int
    head: str
    windows: list[tuple[Size | None, Size]]
    windows_source: str
    prefix: str = ""
    cast: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    channels: str = ""
    randomly_initialized: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    other_states: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        renamed = f", {self.renamed} under another name" if self.renamed else ""
        prefix = f", without the {self.prefix!r} before its names" if self.prefix else ""
        cast = f", cast from {' and '.join(self.cast)}" if self.cast else ""
        rows = [
            ("weights", f"{self.source} ({self.format}{prefix})"),
            ("checkpoint", str(self.variant)),
            ("loaded", f"{self.loaded} tensors{renamed}{cast}"),
            ("head", self.head),
            ("windows", f"pre-training → now, {self.windows_source}"),
        ]
        for stage, (pretrained, now) in enumerate(self.windows, start=1):
            rows.append((f"  stage {stage}", f"{show_window(pretrained) if pretrained else '?'} → {show_window(now)}"))

        if self.channels:
            rows.append(("channels", self.channels))
        lists = (
            ("resized", self.resized),
            ("inflated", self.inflated),
            ("random init", self.randomly_initialized),
            ("not used", self.unused),
            ("not read", [f"{entry}, which holds weights as well" for entry in self.other_states]),
        )
        rows += [(name, f"{len(names)}: {some(names)}") for name, names in lists if names]
        return "\n".join(f"{name:12}{printable(value)}" for name, value in rows)


def load_weights(
    module: nn.Module,
    source: Source,
    *,
    window_size: WindowSize | None = None,
    image_size: ImageSize | None = None,
    head_rows: str | PathLike[str] | Sequence[int] | None = None,
) -> LoadReport:
    """Loads a checkpoint into a backbone, or into a task with ``.backbone`` and ``.head``, and sets its windows.

    Nothing changes unless the whole backbone fits. A head that is missing or has other classes stays randomly
    initialized; of segmentation heads only the classifiers depend on the classes, and the rest must fit.

    Args:
        module: a ``SwinTransformerV2``, or a module that has one as ``backbone``.
        source: file, folder, state dict or dict around one; official, SimMIM, timm, Hugging Face, torchvision or this
            package's own, distinguished by their names. A run's folder stands for its best checkpoint.
        window_size: window that the checkpoint was trained at, needed only where the file does not say; of a model
            fine-tuned at a larger window, that of its pre-training, which its position bias is measured in.
        image_size: pixels that it was trained at; goes with ``window_size``.
        head_rows: for each class of the module its row in the checkpoint's head, as numbers or as a text file of one
            number per line. Official ImageNet-22k heads go into 1,000-class heads without it.

    Raises:
        UserError: for a file that cannot be read, another architecture or variant, backbone tensors that are missing or
            do not fit, a segmentation head built otherwise, and windows that contradict the file.
    """
    checkpoint = read_checkpoint(source if isinstance(source, Mapping) else checkpoint_of(source))
    backbone = backbone_of(module)
    official, format, variant, is_image_for_clips = _read_official(checkpoint, backbone)
    official, channels = adapt_channels(official, variant.in_channels, backbone.in_channels)
    origin = resolve_windows(checkpoint, official, variant, window_size, image_size)
    _check_same_position_bias(checkpoint, official, format, backbone)
    inflated: list[str] = []
    if is_image_for_clips:
        official, origin, inflated = _inflate(official, origin, backbone)

    # From here on, tensors go by the names of a task.
    weights = from_official(official, "lightning")
    targets = named_tensors(module)
    resized = resize_tables(weights, backbone, origin[0].effective if origin else None)
    _check_backbone_fits(weights, targets, checkpoint.source)
    _check_segmentation_head_fits(weights, targets, checkpoint, module)
    head = _fit_head(weights, targets, format, head_rows)

    values = {
        name: weights[name]
        for name, target in targets.items()
        if name in weights and weights[name].shape == target.shape
    }
    check_types(values, targets, checkpoint.source)
    cast = {name: value for name, value in values.items() if value.dtype != targets[name].dtype}
    converted = {name: value.to(targets[name].dtype) for name, value in cast.items()}
    check_finite(converted, f"{checkpoint.source}, in the model's type")  # a number may be too large for it

    # All checks have passed: only now does the module change.
    if origin is not None:
        backbone.set_pretrained_window(origin[0].pretrained)
    _copy_into(targets, values | converted)

    unused = [name for name in weights if name not in values]
    return LoadReport(
        source=checkpoint.source,
        format=format,
        variant=variant,
        loaded=len(values),
        cast=sorted({str(value.dtype).removeprefix("torch.") for value in cast.values()}),
        prefix=checkpoint.prefix,
        other_states=checkpoint.other_states,
        renamed=len(values.keys() - {name_prefix(module) + name for name in checkpoint.state}),
        head=head,
        windows=list(zip(backbone.pretrained_window_size, backbone.window_size, strict=True)),
        windows_source=origin[1] if origin else _NOT_STATED,
        resized=resized,
        inflated=inflated,
        channels=channels,
        randomly_initialized=[name for name in targets if name not in values],
        unused=list(to_official(dict.fromkeys(unused, torch.empty(0)), "lightning")),
    )


_NOT_STATED = (
    "not stated by the file: kept as the model had them; name them with window_size= and image_size= in Python, "
    "with --model.backbone.pretrained_window_size on the command line (those that the checkpoint was trained at)"
)


def _read_official(checkpoint: Checkpoint, backbone: SwinTransformerV2) -> tuple[State, Format, Variant, bool]:
    """A checkpoint under official names, with its format and variant, and whether it is of images for clips.

    Raises:
        UserError: naming the checkpoint: it is of another architecture or variant, or holds no finite real numbers.
    """
    try:
        format = detect_format(checkpoint.state)
        official = to_official(checkpoint.state, format)
        check_official(official, checkpoint.source)
        variant = describe_variant(official)
        is_image_for_clips = _check_same_variant(variant, backbone)
    except UserError as error:
        has_source = str(error).startswith(checkpoint.source)
        raise UserError(str(error) if has_source else f"{checkpoint.source}: {error}") from error
    return official, format, variant, is_image_for_clips


@torch.no_grad()
def _copy_into(targets: State, values: State) -> None:
    """Copies values into the tensors of their names."""
    for name, value in values.items():
        target = targets[name]
        if target.is_meta:  # on the meta device: the tensor itself goes there
            torch.utils.swap_tensors(target, nn.Parameter(value, target.requires_grad))
        else:
            target.copy_(value)


def check_official(state: State, source: str) -> None:
    """Refuses an official state dict with learned tensors that are no finite real numbers.

    Raises:
        UserError: naming them.
    """
    real = torch.empty(0)
    learned = [name for name in state if not is_buffer(name) and not name.endswith("num_batches_tracked")]
    check_types(state, dict.fromkeys(learned, real), source)
    check_finite(state, source)


def _check_same_variant(variant: Variant, backbone: SwinTransformerV2) -> bool:
    """Refuses another variant; whether the checkpoint is of images and the backbone for clips."""
    expected = describe_variant(own_state(backbone))
    is_image_for_clips = (len(variant.patch_size), len(expected.patch_size)) == (2, 3)
    if is_image_for_clips:
        variant = inflate_variant(variant, expected.patch_size[0])
    elif len(variant.patch_size) != len(expected.patch_size):
        raise UserError(
            f"the checkpoint is for clips, the model for images. Give the model patch_size {[*variant.patch_size]} and "
            "windows in time; only image weights can be carried over to clips, not back."
        )
    if variant.in_channels == RGB:  # whose kernels are adapted
        variant = dataclasses.replace(variant, in_channels=expected.in_channels)
    if variant != expected:
        raise UserError(f"the checkpoint is {variant}, the model is {expected}. Choose the model that the file holds.")
    return is_image_for_clips


def _inflate(
    official: State, origin: tuple[Windows, str] | None, backbone: SwinTransformerV2
) -> tuple[State, tuple[Windows, str] | None, list[str]]:
    """Image weights and their windows as the backbone over clips takes them, and the names of what changed."""
    windows = backbone.window_size
    try:
        inflated, changed = inflate(official, backbone.patch_size[0], windows, origin[0] if origin else None)
    except ValueError as error:
        raise UserError(f"the checkpoint's bias tables cannot be resized: {error}") from error
    if origin is not None:
        image_windows, source = origin
        origin = inflate_windows(image_windows, [window[0] for window in windows]), f"{source}; in time the model's"
    return inflated, origin, changed


def resolve_windows(
    checkpoint: Checkpoint,
    state: State,
    variant: Variant,
    window_size: WindowSize | None,
    image_size: ImageSize | None,
) -> tuple[Windows, str] | None:
    """The checkpoint's windows and what they come from: the checkpoint, else the arguments; None where neither says.

    Raises:
        UserError: the arguments contradict the checkpoint, or one of the two is missing.
    """
    in_checkpoint = find_windows(checkpoint, state, variant)
    if window_size is None and image_size is None:
        return in_checkpoint
    if window_size is None or image_size is None:
        raise UserError("window_size and image_size say together what the checkpoint was trained at; give both")

    in_arguments = windows_at(variant, window_size, image_size)
    if in_checkpoint is None:
        return in_arguments, "from the arguments"
    windows, source = in_checkpoint
    if windows.effective != in_arguments.effective:
        raise UserError(
            f"{checkpoint.source} was trained at windows {show_windows(windows.effective)} ({source}), but "
            f"window_size and image_size say {show_windows(in_arguments.effective)}. They are for files that do "
            "not say; leave them out."
        )
    return in_checkpoint


def _check_same_position_bias(
    checkpoint: Checkpoint, state: State, format: Format, backbone: SwinTransformerV2
) -> None:
    """Refuses weights of one class of position bias for another, as far as the checkpoint says which it is."""
    bias = checkpoint.record.get("position_bias")
    if any(name.endswith("relative_position_bias_table") for name in state):
        bias = BiasTable.__name__
    elif bias is None and (format not in ("official", "lightning") or any(map(is_buffer, state))):
        bias = LogCPB.__name__  # other libraries have no other

    accepted = [cls.__name__ for cls in backbone.position_bias.__mro__]
    # Without a name, all that is known is that there are no tables.
    fits = bias in accepted if bias else BiasTable.__name__ not in accepted
    if not fits:
        raise UserError(
            f"{checkpoint.source} has a {bias or 'continuous'} position bias, the model {accepted[0]}; "
            "build the model with the position_bias of the checkpoint"
        )


_TABLE = ".attn.cpb_mlp.relative_position_bias_table"


def resize_tables(weights: State, backbone: SwinTransformerV2, trained: Sequence[Size] | None) -> list[str]:
    """Resizes V1-style bias tables in place to those of the backbone.

    Args:
        weights: tensors under the names of a task.
        backbone: whose windows they are for.
        trained: windows in effect in training, per stage; None where they are not known.

    Returns:
        The names of those that changed.

    Raises:
        UserError: a table is of no square window, or of another number of axes.
    """
    resized = []
    for stage, new in enumerate(backbone.window_size):
        for block in range(backbone.depths[stage]):
            name = f"backbone.layers.{stage}.blocks.{block}{_TABLE}"
            if name not in weights:
                continue
            table = weights[name]
            likely = (trained[stage], new) if trained else (new,)
            fitting = [window for window in likely if math.prod(2 * side - 1 for side in window) == len(table)]
            try:
                old = fitting[0] if fitting else square_table_window(len(table))
                if old != new:
                    weights[name] = resize_bias_table(table, old, new)
                    resized.append(name)
            except ValueError as error:
                raise UserError(f"the checkpoint's bias tables cannot be resized: {error}") from error
    return resized


def _check_backbone_fits(weights: State, targets: State, source: str) -> None:
    problems = find_incompatible_keys(
        weights, {name: value for name, value in targets.items() if name.startswith("backbone.")}
    )
    if problems:
        positions = ""
        if "backbone.absolute_pos_embed" in weights:
            positions = ". It was trained with absolute position embeddings, which no backbone here has"
        raise UserError(f"{source} does not fit the model; nothing was loaded. {'; '.join(problems)}{positions}")


def find_incompatible_keys(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], parts: str | tuple[str, ...] = "backbone."
) -> list[str]:
    """What keeps a checkpoint's tensors from fitting: missing, of another shape, unexpected; [] if nothing.

    Args:
        weights: the checkpoint's tensors under the names of a task.
        own: those of the model that must be there.
        parts: beginnings of names; of the checkpoint's further tensors, those that begin so are unexpected.
    """
    missing_keys = [name for name in own if name not in weights]
    unexpected_keys = [name for name in weights if name.startswith(parts) and name not in own]
    shapes = [
        f"{name} ({tuple(weights[name].shape)} instead of {tuple(value.shape)})"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = (("missing", missing_keys), ("of another shape", shapes), ("unexpected", unexpected_keys))
    return [f"{len(names)} {problem}: {some(names)}" for problem, names in problems if names]


_UPERNET_CHANNELS = "head.decoder.fuse.0.weight"
_FCN_CHANNELS = "head.auxiliary.conv.0.weight"
_SEGMENTATION_CLASSES = "head.decoder.classifier.1.weight"


def _check_segmentation_head_fits(weights: State, targets: State, checkpoint: Checkpoint, module: nn.Module) -> None:
    """Refuses UPerNet heads that are not built as the module's: one of which only parts are loaded is of no use.

    Only its classifiers may be of other classes, and the auxiliary head, which serves training alone, may be missing
    on either side.
    """
    source = checkpoint.source
    is_upernet = _UPERNET_CHANNELS in targets
    if not is_upernet or not any(name in weights for name in targets if name.startswith("head.decoder.")):
        return

    in_file, in_model = _has(weights, "head.norms."), _has(targets, "head.norms.")
    if in_file != in_model:
        raise UserError(
            f"{source} holds a UPerNet {'with' if in_file else 'without'} norms of the backbone's maps, the model is "
            f"built {'with' if in_model else 'without'} them. Build it with map_norms={in_file} "
            f"(--model.map_norms {str(in_file).lower()})."
        )

    for name, setting in ((_UPERNET_CHANNELS, "decoder.channels"), (_FCN_CHANNELS, "auxiliary_channels")):
        if name in weights and name in targets and len(weights[name]) != len(targets[name]):
            theirs, ours = len(weights[name]), len(targets[name])
            raise UserError(
                f"{source} holds a head with {setting} {theirs}, the model is built with {ours}. Build it with "
                f"--model.{setting} {theirs}."
            )

    their_scales = checkpoint.config.get("pool_scales")
    our_scales: Any = next((part.pool_scales for part in module.modules() if hasattr(part, "pool_scales")), None)
    if their_scales is not None and our_scales is not None and tuple(their_scales) != our_scales:
        raise UserError(
            f"{source} holds a UPerNet with pool_scales {[*their_scales]}, the model is built with {[*our_scales]}. "
            f"Build it with --model.decoder.pool_scales '{[*their_scales]}'."
        )

    parts = ("head.norms.", "head.decoder.", "head.auxiliary.")
    in_both = tuple(part for part in parts if _has(weights, part) and _has(targets, part))
    head_weights, head_targets = (
        {name: value for name, value in state.items() if name.startswith(in_both) and not _may_differ(name)}
        for state in (weights, targets)
    )
    if problems := "; ".join(find_incompatible_keys(head_weights, head_targets, in_both)):
        advice = ". auxiliary_weight=0 (--model.auxiliary_weight 0) leaves the auxiliary head out"
        raise UserError(
            f"{source}: its segmentation head does not fit the model's; nothing was loaded. {problems}"
            f"{advice if 'head.auxiliary.' in problems else ''}"
        )


def _has(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _may_differ(name: str) -> bool:
    """Whether a tensor of a segmentation head depends on the classes, or only counts batches."""
    return ".classifier." in name or name.endswith("num_batches_tracked")


_HEAD = ("head.fc.weight", "head.fc.bias")


def _fit_head(
    weights: State, targets: State, format: Format, head_rows: str | PathLike[str] | Sequence[int] | None
) -> str:
    """Picks the rows of another head's classes where they are known; returns what became of the head, in words."""
    if _HEAD[0] not in targets:
        if head_rows is not None:
            raise UserError("head_rows was given, but the model has no classification head")
        return _describe_other_head(weights, targets)

    classes = len(targets[_HEAD[0]])
    if _HEAD[0] not in weights:
        if head_rows is not None:
            raise UserError("head_rows was given, but the checkpoint has no classification head")
        return f"randomly initialized, {classes} classes: the checkpoint has none"

    available = len(weights[_HEAD[0]])
    if head_rows is None and (format, available, classes) == ("official", 21_841, 1_000):
        text = resources.files("swinv2_tasks.weights").joinpath("imagenet_22k_to_1k.txt").read_text()
        head_rows = [int(row) for row in text.split()]
    if head_rows is not None:
        rows = _read_rows(head_rows, classes, available)
        weights.update({name: weights[name][rows] for name in _HEAD if name in weights})
        return f"{classes} rows of the checkpoint's {available}"
    if available != classes:
        return f"randomly initialized, {classes} classes: the checkpoint has {available}"
    return f"loaded, {classes} classes"


def _describe_other_head(weights: State, targets: State) -> str:
    """What becomes of a head that is not one of classification, in words."""
    names = [name for name in targets if name.startswith("head.")]
    if not names:
        return "the model has none"
    fitting = sum(name in weights and weights[name].shape == targets[name].shape for name in names)
    text = f"{fitting} of {len(names)} tensors loaded"

    if _SEGMENTATION_CLASSES in weights and _SEGMENTATION_CLASSES in targets:
        available, classes = len(weights[_SEGMENTATION_CLASSES]), len(targets[_SEGMENTATION_CLASSES])
        if available != classes:
            text += f"; classifiers randomly initialized, {classes} classes: the checkpoint has {available}"
    return text


_ROWS_BYTES = 2**24
"""Of a file of row numbers: two million of them."""


def _read_rows(source: str | PathLike[str] | Sequence[Any], classes: int, available: int) -> Tensor:
    try:
        entries = read_text(source, _ROWS_BYTES).split() if isinstance(source, str | PathLike) else source
        rows = torch.tensor([int(entry) for entry in entries], dtype=torch.int64)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"head_rows: expected whole numbers, one per class of the model: {error}") from error
    if len(rows) != classes or (len(rows) and not 0 <= rows.min() <= rows.max() < available):
        raise UserError(f"head_rows: expected {classes} numbers from 0 to {available - 1}, one per class of the model")
    return rows
