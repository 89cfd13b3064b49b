"""Names of one parameter in six checkpoint formats, and the way from each to each: pure functions over state dicts.

Swin Transformer V2, https://arxiv.org/abs/2111.09883; SimMIM, https://arxiv.org/abs/2111.09886. Everything passes
through the *official* names, those of the authors' classification code, to which the few tensors that other files add
join under the names that SimMIM gives them: ``mask_token`` and ``decoder.0``. UPerNet's heads join under the names of
this package's ``SegmentationTask``.

Tensors are passed on unchanged, or cut and joined along their first axis; no value and no dtype ever changes.
Shapes: C embed_dim, D = C·2ⁱ channels of a stage, h its heads, M its window, nW windows per map.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

import torch
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

Format = Literal["official", "simmim", "timm", "huggingface", "torchvision", "lightning"]
FORMATS: tuple[Format, ...] = get_args(Format)
State = dict[str, Tensor]

BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask")
"""Last parts of names that are computed from the windows, not learned."""


@dataclass(frozen=True)
class Layout:
    """Where a format keeps things: where its blocks and downsamples are, and what it calls what is inside and outside.

    ``inside`` and ``outside`` go from official name to the format's own; what they leave out, the format cannot hold.
    A name stands for itself and for its ``.weight`` and ``.bias``.
    """

    block: Callable[[int, int], str]
    downsample: Callable[[int], str]
    inside: Mapping[str, str]
    outside: Mapping[str, str]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_CPB = _same("attn.cpb_mlp.0", "attn.cpb_mlp.2")
_BLOCK = {
    **_same("norm1", "norm2", "attn.logit_scale", "attn.q_bias", "attn.v_bias", "attn.qkv", "attn.proj"),
    **_same("mlp.fc1", "mlp.fc2"),
    **_CPB,
}
_OFFICIAL_BLOCK = {
    **_BLOCK,
    **_same("norm3", "attn.relative_position_bias_table"),
    **_same("attn.relative_coords_table", "attn.relative_position_index", "attn_mask"),
}
_TRUNK = _same("patch_embed.proj", "patch_embed.norm")
_OFFICIAL_TRUNK = {**_TRUNK, **_same("absolute_pos_embed")}

LAYOUTS: dict[Format, Layout] = {
    "official": Layout(
        block=lambda i, j: f"layers.{i}.blocks.{j}",
        downsample=lambda i: f"layers.{i}.downsample",
        inside=_OFFICIAL_BLOCK,
        outside={**_OFFICIAL_TRUNK, **_same("norm", "head")},
    ),
    "simmim": Layout(
        block=lambda i, j: f"encoder.layers.{i}.blocks.{j}",
        downsample=lambda i: f"encoder.layers.{i}.downsample",
        inside=_OFFICIAL_BLOCK,
        outside={
            **{name: f"encoder.{name}" for name in (*_OFFICIAL_TRUNK, "norm", "mask_token")},
            "decoder.0": "decoder.0",
        },
    ),
    "timm": Layout(  # a downsample opens the next stage instead of closing its own
        block=lambda i, j: f"layers.{i}.blocks.{j}",
        downsample=lambda i: f"layers.{i + 1}.downsample",
        inside=_BLOCK,
        outside={**_TRUNK, "norm": "norm", "head": "head.fc"},
    ),
    "huggingface": Layout(
        block=lambda i, j: f"swinv2.encoder.layers.{i}.blocks.{j}",
        downsample=lambda i: f"swinv2.encoder.layers.{i}.downsample",
        inside={
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.logit_scale": "attention.self.logit_scale",
            "attn.cpb_mlp.0": "attention.self.continuous_position_bias_mlp.0",
            "attn.cpb_mlp.2": "attention.self.continuous_position_bias_mlp.2",
            "attn.q": "attention.self.query",
            "attn.k": "attention.self.key",
            "attn.v": "attention.self.value",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        outside={
            "patch_embed.proj": "swinv2.embeddings.patch_embeddings.projection",
            "patch_embed.norm": "swinv2.embeddings.norm",
            "absolute_pos_embed": "swinv2.embeddings.position_embeddings",
            "mask_token": "swinv2.embeddings.mask_token",
            "norm": "swinv2.layernorm",
            "head": "classifier",
            "decoder.0": "decoder.0",
        },
    ),
    "torchvision": Layout(  # stages and downsamples alternate in one list
        block=lambda i, j: f"features.{2 * i + 1}.{j}",
        downsample=lambda i: f"features.{2 * i + 2}",
        inside={
            **_same("norm1", "norm2", "attn.logit_scale", "attn.qkv", "attn.proj"),
            **_CPB,
            **_same("attn.relative_coords_table", "attn.relative_position_index"),
            "mlp.fc1": "mlp.0",
            "mlp.fc2": "mlp.3",
        },
        outside={"patch_embed.proj": "features.0.0", "patch_embed.norm": "features.0.2", **_same("norm", "head")},
    ),
    "lightning": Layout(  # the attributes of this package's tasks
        block=lambda i, j: f"backbone.layers.{i}.blocks.{j}",
        downsample=lambda i: f"backbone.layers.{i}.downsample",
        inside={
            **_BLOCK,
            "norm3": "norm3",
            "attn.relative_position_bias_table": "attn.cpb_mlp.relative_position_bias_table",
        },
        outside={
            **{name: f"backbone.{name}" for name in _OFFICIAL_TRUNK},
            "norm": "head.norm",
            "head": "head.fc",
            "mask_token": "head.mask_token",
            "decoder.0": "head.decoder.0",
        },
    ),
}


_ANCHORS = (
    "patch_embed.proj.weight",  # official, SimMIM, timm, this package
    "embeddings.patch_embeddings.projection.weight",  # Hugging Face
    "features.0.0.weight",  # torchvision
)
"""A tensor that each model has once, as it is called in each format behind whatever stands before all names."""


def without_prefix(state: Mapping[str, Tensor], source: str) -> tuple[State, str]:
    """Names without what DDP, a LightningModule or another module around the model puts before them.

    Returns them with the prefix. It is found by structure: it is what stands before the model's own names, whatever
    its words are. What lies outside the model keeps its name. timm's ``features_only`` writes layers_0 for layers.0.

    Raises:
        UserError: there are several models in the state dict.
    """
    anchors = [name for name in state if name.endswith(_ANCHORS) and _is_whole(name)]
    prefixes = sorted({_prefix_before(state, name) for name in anchors})
    if len(anchors) > 1:
        raise UserError(
            f"{source} holds several models, whose names begin with {', '.join(map(repr, prefixes))}: nothing says "
            "which of them is meant. Save the state dict of one of them."
        )

    prefix = prefixes[0] if prefixes else ""
    renamed: State = {}
    for name, tensor in state.items():
        inner = name.removeprefix(prefix)
        if inner != name:
            inner = _FEATURES.sub(r"layers.\1.", inner)
        elif not prefix:
            inner = _FEATURES.sub(r"layers.\1.", name)
        if inner in renamed or (inner != name and not name.startswith(prefix)):
            raise UserError(f"{source}: {inner} is there twice, with and without {prefix!r} before it")
        renamed[inner] = tensor
    return renamed, prefix


_FEATURES = re.compile(r"^layers_(\d+)\.")


def _is_whole(name: str) -> bool:
    """Whether an anchor's words are whole ones: another_features.0.0.weight is none."""
    return any(name == anchor or name.endswith(f".{anchor}") for anchor in _ANCHORS)


def _prefix_before(state: Iterable[str], anchor_name: str) -> str:
    """What stands before the model's own names, of which backbone., encoder. and swinv2. may be a part."""
    anchor = next(end for end in _ANCHORS if anchor_name.endswith(end))
    around = anchor_name.removesuffix(anchor)
    if anchor.startswith("embeddings."):
        return around.removesuffix("swinv2.")
    inside = {name.removeprefix(around).split(".", 1)[0] for name in state if name.startswith(around)}
    # An official or timm model ends with a norm and a head, and features_only has stages of its own names; of a task of
    # this package both lie beside the backbone, of SimMIM the decoder lies beside the encoder.
    if inside & {"head", "layers_0"}:
        return around
    for own in ("backbone.", "encoder."):
        if around == own or around.endswith(f".{own}"):
            return around if own == "backbone." and "norm" in inside else around.removesuffix(own)
    return around


def detect_format(state: Mapping[str, Tensor]) -> Format:
    """The format of a Swin V2 state dict, by its names.

    Raises:
        UserError: for any other architecture, saying which it seems to be.
    """
    state = _unprefixed_huggingface(dict(state))
    is_cosine = any(name.endswith((".attn.logit_scale", ".self.logit_scale")) for name in state)
    if is_cosine and not any(".meta_mlp." in name for name in state):
        for format in FORMATS:
            if f"{LAYOUTS[format].outside['patch_embed.proj']}.weight" in state:
                return "timm" if format == "official" and _opens_stages_with_downsample(state) else format
    raise UserError(f"not a Swin Transformer V2 checkpoint: it looks like {_other_architecture(state)}")


def _opens_stages_with_downsample(state: Iterable[str]) -> bool:
    downsamples = {name.split(".")[1] for name in state if re.match(r"layers\.\d+\.downsample\.", name)}
    return "0" not in downsamples if downsamples else "head.fc.weight" in state


_OTHERS = (  # (a name that gives an architecture away, the architecture)
    (r"\.meta_mlp\.", "timm's Swin V2-CR, a different model"),
    (r"attention\.self\.relative_position_bias_table$", "Swin Transformer V1"),
    (r"attn\.relative_position_bias_table$", "Swin Transformer V1"),
    (r"(^|\.)layer1\.0\.(conv1|bn1)\.", "a ResNet"),
    (r"(^|\.)stages\.0\.(blocks\.)?0\.(gamma|dwconv\.weight|conv_dw\.weight)$", "a ConvNeXt"),
    (r"(^|\.)cls_token$|(^|\.)class_token$", "a Vision Transformer"),
)


def _other_architecture(state: Mapping[str, Tensor]) -> str:
    for pattern, architecture in _OTHERS:
        if any(re.search(pattern, name) for name in state):
            return architecture
    return f"something with {len(state)} tensors, the first named {', '.join(list(state)[:3]) or '(none)'}"


def to_official(state: Mapping[str, Tensor], format: Format) -> State:
    """A state dict of ``format`` under official names; names that the format does not define stay unchanged."""
    state = {name.replace(".rpe_mlp.", ".cpb_mlp."): tensor for name, tensor in state.items()}  # SimMIM's releases
    if format == "huggingface":
        state = _with_own_upernet_names(_unprefixed_huggingface(state))
    official = {theirs: ours for ours, theirs in _names(format, state).items()}
    renamed = {official.get(name, name): tensor for name, tensor in state.items()}
    if format == "huggingface":
        return _join_query_key_value(renamed)
    if format == "torchvision":
        return _split_qkv_bias(renamed)
    return renamed


def from_official(state: Mapping[str, Tensor], format: Format) -> State:
    """An official state dict as ``format`` names it, without what ``find_unsupported_keys`` lists.

    Raises:
        UserError: when the format does not support a learned tensor of the backbone: another model would come out.
    """
    backbone_parts = ("layers.", "patch_embed.", "absolute_pos")
    lost = [name for name in find_unsupported_keys(state, format) if name.startswith(backbone_parts)]
    if lost:
        raise UserError(f"the {format} format does not support {some(lost)}")

    state = _repack(state, format)
    names = _names(format, state)
    if format == "lightning":
        names |= {name: name for name in state if name not in names and not is_buffer(name)}
    renamed = {names[name]: tensor for name, tensor in state.items() if name in names}
    if format == "simmim":
        return {name.replace(".cpb_mlp.", ".rpe_mlp."): tensor for name, tensor in renamed.items()}
    return renamed


def find_unsupported_keys(state: Mapping[str, Tensor], format: Format) -> list[str]:
    """Official names that ``format`` has no name for, buffers aside: of a SimMIM decoder in timm, say."""
    if format == "lightning":  # takes any further tensor under its own name
        return []
    state = _repack(state, format)
    names = _names(format, state)
    return [name for name in state if name not in names and not is_buffer(name)]


def _repack(state: Mapping[str, Tensor], format: Format) -> Mapping[str, Tensor]:
    """Cuts and joins query, key and value as ``format`` keeps them, still under official names."""
    if format == "huggingface":
        return _split_query_key_value(state)
    return _join_qkv_bias(state) if format == "torchvision" else state


def is_buffer(name: str) -> bool:
    """Whether a name is that of a table or mask computed from the windows."""
    return name.endswith(BUFFERS)


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    return ", ".join(map(printable, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _names(format: Format, state: Iterable[str]) -> dict[str, str]:
    """Official names → their names in ``format``, for all stages and blocks that ``state`` names in either."""
    layout = LAYOUTS[format]
    modules = dict(layout.outside)
    for stage, block in _places(state):
        for part in ("reduction", "norm"):
            modules[f"layers.{stage}.downsample.{part}"] = f"{layout.downsample(stage)}.{part}"
        for ours, theirs in layout.inside.items():
            modules[f"layers.{stage}.blocks.{block}.{ours}"] = f"{layout.block(stage, block)}.{theirs}"
    return {ours + leaf: theirs + leaf for ours, theirs in modules.items() for leaf in ("", ".weight", ".bias")}


_PLACE = re.compile(r"(?:layers|features)\.(\d{1,6})\.(?:blocks\.)?(\d{1,6})?")


def _places(state: Iterable[str]) -> set[tuple[int, int]]:
    """Stages and blocks that names may be of, in any format: those that there are, and a few more.

    Not all up to the largest number: a name chooses any.
    """
    numbered = {(int(i), int(j or 0)) for name in state for i, j in _PLACE.findall(name)}
    # torchvision's list holds stage i as number 2i + 1, its downsample as 2i + 2; timm's downsamples open the next one.
    return {(stage, j) for i, j in numbered for stage in (i, i - 1, (i - 1) // 2, i // 2 - 1) if stage >= 0}


def _unprefixed_huggingface(state: State) -> State:
    """Adds the ``swinv2.`` that a bare Hugging Face backbone leaves out."""
    if "embeddings.patch_embeddings.projection.weight" not in state:
        return state
    own = ("embeddings.", "encoder.", "layernorm.")
    return {f"swinv2.{name}" if name.startswith(own) else name: tensor for name, tensor in state.items()}


_UPERNET_NAMES = (  # (transformers' UperNetForSemanticSegmentation, SegmentationTask): replaced one after the other
    (r"^(.+\.)?decode_head\.", "head.decoder."),
    (r"^(.+\.)?auxiliary_head\.", "head.auxiliary."),
    (r"\.psp_modules\.(\d+)\.1\.", r".pools.\1."),  # theirs holds a pooling, without weights, as 0
    (r"\.bottleneck\.", ".pyramid."),
    (r"\.lateral_convs\.", ".laterals."),
    (r"\.fpn_convs\.", ".smooths."),
    (r"\.fpn_bottleneck\.", ".fuse."),
    (r"\.convs\.0\.", ".conv."),
    (r"\.classifier\.(weight|bias)$", r".classifier.1.\1"),  # ours holds the dropout, without weights, as 0
    (r"\.conv\.weight$", ".0.weight"),
    (r"\.batch_norm\.", ".1."),
)
_MAP_NORM = re.compile(r"^(?:.+\.)?hidden_states_norms\.stage(\d+)\.")


def _with_own_upernet_names(state: Mapping[str, Tensor]) -> State:
    """UPerNet's heads and the norms of its maps, if any, under the names of ``SegmentationTask``; the rest unchanged.

    Parts that our heads do not have keep a name below head.: so they are reported as unexpected.
    """
    return {_own_upernet_name(name): tensor for name, tensor in state.items()}


def _own_upernet_name(name: str) -> str:
    if re.search(r"(^|\.)(decode_head|auxiliary_head)\.", name):
        for theirs, ours in _UPERNET_NAMES:
            name = re.sub(theirs, ours, name)
        return name
    return _MAP_NORM.sub(lambda match: f"head.norms.{int(match[1]) - 1}.", name)  # stages count from 1


def _split_query_key_value(state: Mapping[str, Tensor]) -> State:
    """attn.qkv.weight (3D, D) → attn.{q,k,v}.weight (D, D); attn.{q,v}_bias → attn.{q,v}.bias."""
    out: State = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{name.removesuffix('qkv.weight')}{part}.weight"] = rows.clone()  # safetensors refuses views
        elif name.endswith((".attn.q_bias", ".attn.v_bias")):
            out[f"{name.removesuffix('_bias')}.bias"] = tensor
        else:
            out[name] = tensor
    return out


def _join_query_key_value(state: Mapping[str, Tensor]) -> State:
    """Undoes ``_split_query_key_value``; a missing third is left for the caller to find missing."""
    out: State = {}
    for name, tensor in state.items():
        if name.endswith(".attn.q.weight"):
            parts = [state.get(f"{name.removesuffix('q.weight')}{part}.weight") for part in "qkv"]
            out[name.replace(".q.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
        elif name.endswith((".attn.q.bias", ".attn.v.bias")):
            out[f"{name.removesuffix('.bias')}_bias"] = tensor
        elif not name.endswith((".attn.k.weight", ".attn.v.weight")):
            out[name] = tensor
    return out


def _join_qkv_bias(state: Mapping[str, Tensor]) -> State:
    """attn.q_bias and attn.v_bias (D) → attn.qkv.bias (3D), whose middle is 0; position index (M², M²) → flat."""
    out: State = {}
    for name, tensor in state.items():
        value = state.get(name.replace(".q_bias", ".v_bias"))
        if name.endswith(".attn.q_bias") and value is not None:
            out[name.replace(".q_bias", ".qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif name.endswith(".relative_position_index"):
            out[name] = tensor.flatten()
        elif not name.endswith(".attn.v_bias"):
            out[name] = tensor
    return out


def _split_qkv_bias(state: Mapping[str, Tensor]) -> State:
    """Undoes ``_join_qkv_bias``. The middle of the bias, the keys', is dropped: torchvision multiplies it by 0 too."""
    out: State = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            out[name.replace(".qkv.bias", ".q_bias")] = query.clone()
            out[name.replace(".qkv.bias", ".v_bias")] = value.clone()
        elif name.endswith(".relative_position_index"):
            out[name] = tensor.reshape(round(tensor.numel() ** 0.5), -1)
        else:
            out[name] = tensor
    return out


@dataclass(frozen=True)
class Variant:
    """The numbers that make one Swin V2 different from another, windows aside."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    patch_size: tuple[int, ...]
    in_channels: int
    mlp_ratio: float
    extra_norm_every: int

    @property
    def name(self) -> str:
        """The paper's name (SwinV2-T…), or just SwinV2."""
        letter = _LETTERS.get((self.embed_dim, self.depths))
        return f"SwinV2-{letter}" if letter else "SwinV2"

    def __str__(self) -> str:
        numbers = f"embed_dim {self.embed_dim}, depths {_list(self.depths)}, heads {_list(self.num_heads)}"
        unusual = "" if self.patch_size == (4, 4) else f", patch {_list(self.patch_size)}"
        unusual += "" if self.in_channels == 3 else f", {self.in_channels} input channels"
        unusual += "" if self.mlp_ratio == 4 else f", mlp_ratio {self.mlp_ratio:g}"
        unusual += f", extra norm every {self.extra_norm_every} blocks" if self.extra_norm_every else ""
        return f"{self.name} ({numbers}{unusual})"


_LETTERS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "T",
    (96, (2, 2, 18, 2)): "S",
    (128, (2, 2, 18, 2)): "B",
    (192, (2, 2, 18, 2)): "L",
    (352, (2, 2, 18, 2)): "H",
    (512, (2, 2, 42, 4)): "G",
}


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _with_axes(state: Mapping[str, Tensor], name: str, least: int) -> Tensor:
    """A tensor of at least so many axes, none of them empty."""
    tensor = state[name]
    if tensor.dim() < least or not tensor.numel():
        shape = "×".join(map(str, tensor.shape)) or "one number"
        raise UserError(f"the checkpoint is corrupt: {name} has the shape {shape}. Download it again.")
    return tensor


def describe_variant(state: Mapping[str, Tensor]) -> Variant:
    """Reads the variant off an official state dict.

    Raises:
        UserError: when a tensor that it is read off is missing, or is not of so many axes.
    """
    matches = [re.match(r"layers\.(\d{1,6})\.blocks\.(\d{1,6})\.attn\.logit_scale$", name) for name in state]
    blocks = sorted((int(match[1]), int(match[2])) for match in matches if match)
    counts = Counter(stage for stage, _ in blocks)
    stages = next(stage for stage in count() if stage not in counts)
    if len(counts) > stages:
        raise UserError(
            f"the checkpoint is incomplete: layers.{stages} is missing, while layers.{max(counts)} is there"
        )
    depths = tuple(counts[stage] for stage in range(stages))
    try:
        patches = _with_axes(state, "patch_embed.proj.weight", 3)  # (C, channels, patch sides…)
        heads = tuple(len(_with_axes(state, f"layers.{i}.blocks.0.attn.logit_scale", 1)) for i in range(stages))
        hidden = len(_with_axes(state, "layers.0.blocks.0.mlp.fc1.weight", 1))
    except KeyError as error:
        raise UserError(f"the checkpoint is incomplete: {error.args[0]} is missing") from None
    matches = [re.match(r"layers\.\d+\.blocks\.(\d{1,6})\.norm3\.weight$", name) for name in state]
    extra = [int(match[1]) for match in matches if match]
    return Variant(
        embed_dim=len(patches),
        depths=depths,
        num_heads=heads,
        patch_size=tuple(patches.shape[2:]),
        in_channels=patches.shape[1],
        mlp_ratio=hidden / len(patches),
        extra_norm_every=1 + min(extra) if extra else 0,
    )
