"""From feature maps to class logits: norm, mean over positions, linear layer.

https://arxiv.org/abs/2103.14030, section 3.1; the published classification code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from swinv2_tasks.errors import UserError


class ClassificationHead(nn.Module):
    """Class logits from the last map of a backbone, over images or clips.

    Args:
        in_channels: channels C of the last map, ``backbone.channels[-1]``.
        num_classes: number of classes.
        dropout: probability of dropping a pooled feature in training.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout is {dropout}; expected a probability, from 0 to below 1")
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, sides…) of which the last is used → logits (B, num_classes)."""
        x = self.norm(maps[-1].flatten(2).transpose(1, 2))
        return self.fc(self.dropout(x.mean(1)))
