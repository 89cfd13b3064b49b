"""A classifier with batch norm: buffers that processes must agree on before they evaluate."""

from __future__ import annotations

from typing import Any

from torch import nn

from swinv2_tasks.tasks import ClassificationTask


class NormedTask(ClassificationTask):
    """ClassificationTask whose head normalizes over the batch."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.head = nn.Sequential(nn.BatchNorm2d(self.backbone.channels[-1]), _Last(self.head))

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x)[-1])


class _Last(nn.Module):
    """Gives a head of several maps the last one."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Any) -> Any:
        return self.head([x])
