"""The relative position bias of a model, at the windows that it was trained with and at those of a run.

It is what a transfer to another window rests on: the same function, evaluated at other offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.swin_v2 import SwinBlock
from swinv2_tasks.backbone.window import Size
from swinv2_tasks.commands.report.blocks import Chart, Section
from swinv2_tasks.commands.report.charts import draw
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.commands.report.trained_model import TrainedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Position bias"

IN_A_ROW = 8
"""Heads side by side."""

NOTE = (
    "What each head adds to the attention between two tokens of a window, by how far apart they are: right of the "
    "middle the query lies right of the key, below it below. Numbers are tokens; the colors are those of all maps of a "
    "stage."
)


@dataclass(frozen=True)
class BiasMaps:
    """The bias of a block's heads within a window.

    Attributes:
        stage: counted from 1.
        block: within its stage, counted from 1.
        window: sides in tokens.
        is_trained: whether it is the window that the bias was trained with.
        is_present: whether it is that of the run.
        values: (heads, 2H−1, 2W−1), of offsets from −(H−1) to H−1 and −(W−1) to W−1; of clips at the same time.
    """

    stage: int
    block: int
    window: Size
    is_trained: bool
    is_present: bool
    values: np.ndarray

    @property
    def title(self) -> str:
        """Where it is, and what the window is."""
        sides = "×".join(map(str, self.window))
        which = "trained" if self.is_trained else "present"
        if self.is_trained and self.is_present:
            which = "trained and present"
        return f"Stage {self.stage}, block {self.block}: {which} window {sides}"


@torch.no_grad()
def bias_maps(backbone: SwinTransformerV2, input_size: Sequence[int] | None = None) -> Iterator[BiasMaps]:
    """The maps of the first and the last block of each stage, at the trained and the present window.

    Args:
        backbone: with the windows of the run.
        input_size: of the run in pixels, as windows longer than their maps shrink; None: they are taken as stated.
    """
    windows = backbone.window_size if input_size is None else backbone.effective_windows(input_size)
    for number, (stage, present) in enumerate(zip(backbone.stages, windows, strict=True), start=1):
        trained = stage.pretrained_window_size or present
        blocks = cast(list[SwinBlock], [*stage.blocks])
        for index in sorted({0, len(blocks) - 1} if blocks else ()):
            module: Any = blocks[index].attn.cpb_mlp
            for window in dict.fromkeys([trained, present]):
                values = module.table(window, trained).float().T.cpu().numpy()
                values = values.reshape(len(values), *(2 * side - 1 for side in window))
                if len(window) == 3:
                    values = values[:, window[0] - 1]
                yield BiasMaps(number, index + 1, window, window == trained, window == present, values)


def bias_section(run: Run, model: TrainedModel) -> Section:
    """The section of a run.

    Args:
        run: the run's files.
        model: its model.
    """
    size = (run.summary.get("model") or {}).get("input_size")
    maps = [*bias_maps(model.task.backbone, size)]
    charts = [_chart(each, [other for other in maps if other.stage == each.stage]) for each in maps]
    is_of_clips = model.task.backbone.axes == 3
    note = NOTE + " Of windows over time, tokens of the same time are shown." * is_of_clips
    if all(each.is_present for each in maps):
        note += (
            " The run has the windows of the training; one that is validated at another --model.backbone.window_size"
        )
        note += " shows both."
    return Section(TITLE, charts, note)


def _chart(maps: BiasMaps, of_stage: Sequence[BiasMaps]) -> Chart:
    """The maps of a block's heads, in the colors of its stage."""
    low = min(float(each.values.min()) for each in of_stage)
    high = max(float(each.values.max()) for each in of_stage)
    heads, height, width = maps.values.shape
    rows, columns = -(-heads // IN_A_ROW), min(heads, IN_A_ROW)

    def plot(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        image = axes.imshow(side_by_side(maps.values), cmap="viridis", vmin=low, vmax=high, interpolation="none")
        middles = [(width // 2 + k * (width + 1), k) for k in range(columns)]
        axes.set_xticks([0, width // 2, width - 1], [str(-(width // 2)), "0", str(width // 2)])
        below = (rows - 1) * (height + 1)
        axes.set_yticks([below, below + height // 2, below + height - 1], [str(-(height // 2)), "0", str(height // 2)])
        for middle, k in middles:
            axes.text(middle, -1, f"head {k + 1}", ha="center", va="bottom", fontsize=7)
        axes.spines[:].set_visible(False)
        axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)

    scale = 0.62 if columns > 4 else 0.9
    svg = draw(plot, max(5.2, 1.4 + scale * columns), 0.9 + scale * rows * height / width)
    text = f"{maps.title}: bias of {heads} heads, from {maps.values.min():.3g} to {maps.values.max():.3g}"
    return Chart(maps.title, svg, text)


def side_by_side(values: np.ndarray) -> np.ndarray:
    """Maps (heads, H, W) in rows of ``IN_A_ROW``, a cell of NaN between two."""
    heads, height, width = values.shape
    rows, columns = -(-heads // IN_A_ROW), min(heads, IN_A_ROW)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan, np.float32)
    for head, own in enumerate(values):
        top, left = head // IN_A_ROW * (height + 1), head % IN_A_ROW * (width + 1)
        sheet[top : top + height, left : left + width] = own
    return sheet
