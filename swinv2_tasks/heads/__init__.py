"""From feature maps to predictions. What is named here can be chosen in a config."""

from swinv2_tasks.heads.cascade import CascadeMaskRCNN
from swinv2_tasks.heads.decoder import Decoder
from swinv2_tasks.heads.htc import HTC
from swinv2_tasks.heads.mask_rcnn import Detector, MaskRCNN
from swinv2_tasks.heads.upernet import UPerNet

__all__ = ["HTC", "CascadeMaskRCNN", "Decoder", "Detector", "MaskRCNN", "UPerNet"]
