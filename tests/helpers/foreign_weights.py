"""Checkpoints as other libraries and the authors save them."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwin
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from transformers import Swinv2Config, Swinv2ForImageClassification

from tests.helpers.checkpoints import (
    CHANNELS,
    DEPTHS,
    HEADS,
    Classifier,
    official_state,
    randomize,
    simmim_state,
    tiny_backbone,
)

CLASSES = 5


def timm_model(window: int = 4, image: int = 128) -> nn.Module:
    return TimmSwin(image, embed_dim=CHANNELS, depths=DEPTHS, num_heads=HEADS, window_size=window, num_classes=CLASSES)


def torchvision_model() -> nn.Module:
    blocks: dict[str, Any] = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([4, 4], CHANNELS, list(DEPTHS), list(HEADS), [4, 4], num_classes=CLASSES, **blocks)


def huggingface_model(model_class: type = Swinv2ForImageClassification, **changes: Any) -> Any:
    settings = {"embed_dim": CHANNELS, "depths": DEPTHS, "num_heads": HEADS, "window_size": 4, "image_size": 128}
    return model_class(Swinv2Config(num_labels=CLASSES, **(settings | changes)))


def foreign_state(format: str) -> dict[str, Tensor]:
    """A checkpoint as another library, or the authors, would save it; window 4 throughout."""
    if format == "official":
        return official_state(classes=CLASSES)
    if format == "simmim":
        return simmim_state()
    if format == "lightning":
        return randomize(new_task()).state_dict()
    models = {"timm": timm_model, "torchvision": torchvision_model, "huggingface": huggingface_model}
    state = randomize(models[format]()).state_dict()
    for name, tensor in state.items():
        if name.endswith("qkv.bias"):  # torchvision ignores the keys' third and starts it at 0
            tensor[len(tensor) // 3 : 2 * len(tensor) // 3] = 0
    return state


def new_task(window: Any = 4, classes: int = CLASSES, **kwargs: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(tiny_backbone(window, **kwargs), classes)


AT_128 = {"window_size": 4, "image_size": 128}
