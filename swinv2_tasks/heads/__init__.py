"""From feature maps to predictions. What is named here can be chosen in a config."""

from swinv2_tasks.heads.cascade import CascadeMaskRCNNConfig
from swinv2_tasks.heads.decoder import Decoder
from swinv2_tasks.heads.htc import HTCConfig
from swinv2_tasks.heads.mask_rcnn import DetectorConfig, MaskRCNNConfig
from swinv2_tasks.heads.upernet import UPerNet

__all__ = ["CascadeMaskRCNNConfig", "Decoder", "DetectorConfig", "HTCConfig", "MaskRCNNConfig", "UPerNet"]
