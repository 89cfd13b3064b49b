"""Segmenting images as a whole, by windows, at several scales and flipped, beside brute force."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.errors import UserError
from swinv2_tasks.inference import segmentation as inference
from swinv2_tasks.inference.segmentation import Inference, segment, segment_probabilities, view_logits

STRIDE, CLASSES = 4, 5


def network() -> nn.Module:
    """Patches to logits, then a convolution that looks beyond them and sees where an image ends."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(3, 8, STRIDE, STRIDE), nn.Conv2d(8, CLASSES, 3, padding=1)
    ).requires_grad_(False)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def run(settings: Inference, x: Tensor, size: tuple[int, int] | None = None, net: Any = None) -> tuple[Tensor, Tensor]:
    arguments = (net or network(), x, size or x.shape[2:], settings, STRIDE)
    return segment(*arguments), segment_probabilities(*arguments)


def kernel(side: int, blend: str) -> list[float]:
    if blend == "uniform":
        return [1.0] * side
    return [math.exp(-0.5 * ((i + 0.5 - side / 2) / (side / 8)) ** 2) for i in range(side)]


def slide_by_brute_force(x: Tensor, window: int, stride: int, blend: str, reverse: bool = False) -> Tensor:
    """Logits (CLASSES, h, w), window by window and cell by cell; ``reverse`` goes from the last window to the first."""
    cells = [math.ceil(side / STRIDE) for side in x.shape[2:]]
    padded = F.pad(x, (0, cells[1] * STRIDE - x.shape[3], 0, cells[0] * STRIDE - x.shape[2]))
    window_cells = [min(window // STRIDE, number) for number in cells]
    starts = []
    for number, side in zip(cells, window_cells, strict=True):
        axis, start = [], 0
        while start + side < number:
            axis.append(start)
            start = len(axis) * stride // STRIDE
        starts.append([*axis, number - side])
    net, total, weights = network(), torch.zeros(CLASSES, *cells), torch.zeros(cells)
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    for top, left in reversed(corners) if reverse else corners:
        rows, columns = (slice(STRIDE * a, STRIDE * (a + n)) for a, n in zip((top, left), window_cells, strict=True))
        logits = net(padded[:, :, rows, columns])[0]
        for i, down in enumerate(kernel(window_cells[0], blend)):
            for j, across in enumerate(kernel(window_cells[1], blend)):
                total[:, top + i, left + j] += logits[:, i, j] * down * across
                weights[top + i, left + j] += down * across
    return total / weights


@pytest.mark.parametrize("blend", ["uniform", "gaussian"])
@pytest.mark.parametrize(
    ("size", "window", "stride"), [((40, 52), 16, 8), ((37, 50), 16, 11), ((50, 20), 32, 21), ((16, 70), 20, 20)]
)
def test_windows_are_those_of_brute_force(size: tuple[int, int], window: int, stride: int, blend: Any) -> None:
    settings = Inference("slide", window, stride, blend, sliding_window_batch_size=3)
    (logits,) = view_logits(network(), image(*size), settings, STRIDE)
    for reverse in (False, True):
        expected = slide_by_brute_force(image(*size), window, stride, blend, reverse)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blend", ["uniform", "gaussian"])
@pytest.mark.parametrize("size", [(40, 52), (37, 50), (3, 5)])
def test_a_window_that_covers_the_image_is_the_whole(size: tuple[int, int], blend: Any) -> None:
    whole, slide = run(Inference(), image(*size)), run(Inference("slide", 64, 30, blend), image(*size))
    assert torch.equal(whole[0], slide[0])
    torch.testing.assert_close(whole[1], slide[1])


def test_windows_of_a_square_have_one_size_and_those_of_a_strip_another() -> None:
    shapes: set[tuple[int, ...]] = set()
    net = network()

    def watched(x: Tensor) -> Tensor:
        shapes.add(tuple(x.shape))
        return net(x)

    run(Inference("slide", (16, 32), (8, 16), sliding_window_batch_size=2), image(40, 64), net=watched)
    assert {shape[2:] for shape in shapes} == {(16, 32)}
    assert max(shape[0] for shape in shapes) == 2


@pytest.mark.parametrize("number", [1, 2, 100])
def test_predictions_do_not_depend_on_windows_per_pass(number: int) -> None:
    expected = run(Inference("slide", 16, 12, sliding_window_batch_size=5), image(45, 61))
    result = run(Inference("slide", 16, 12, sliding_window_batch_size=number), image(45, 61))
    assert torch.equal(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1])


@pytest.mark.parametrize("seed", range(30))
def test_every_cell_is_seen(seed: int) -> None:
    """With a network that says 1 everywhere, so does the mean of its windows; a gap would be no number."""
    draw = torch.Generator().manual_seed(seed)

    def random(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    window = 4 * random(1, 9)
    settings = Inference("slide", window, random(1, window + 1), "gaussian", sliding_window_batch_size=7)
    size = (random(1, 80), random(1, 80))
    ones = lambda x: torch.ones(len(x), 2, -(-x.shape[2] // 4), -(-x.shape[3] // 4))  # noqa: E731
    (logits,) = view_logits(ones, image(*size), settings, STRIDE)
    assert logits.shape == (2, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    torch.testing.assert_close(logits, torch.ones_like(logits))


@pytest.mark.parametrize("size", [(40, 52), (64, 30), (9, 9), (200, 131)])
def test_the_prediction_is_that_of_the_logits_enlarged(size: tuple[int, int]) -> None:
    logits = F.interpolate(network()(image(37, 50)), size=size, mode="bilinear", align_corners=False)[0]
    labels, probabilities = run(Inference(), image(37, 50), size)
    torch.testing.assert_close(probabilities, logits.softmax(0))
    assert (labels == logits.argmax(0)).float().mean() > 0.999  # roundings of a tie aside
    torch.testing.assert_close(probabilities.sum(0), torch.ones(size))


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Inference(scales=(1.0, 0.5), flip=True)
    expected = run(settings, image(37, 50), (81, 70))
    for strip in (1, 1000, 5000):
        monkeypatch.setattr(inference, "STRIP", strip)
        result = run(settings, image(37, 50), (81, 70))
        assert torch.equal(result[0], expected[0])
        torch.testing.assert_close(result[1], expected[1])


def test_scales_are_those_that_come_with_the_image() -> None:
    """Only what is not the image's own size is asked for."""
    x, net = image(40, 52), network()
    others = {scale: image(round(40 * scale) + 1, round(52 * scale)) for scale in (0.5, 1.75)}
    scales = []

    def rescaled(scale: float) -> Tensor:
        scales.append(scale)
        return others[scale]

    views = list(view_logits(net, x, Inference(scales=(0.5, 1.0, 1.75), flip=True), STRIDE, rescaled))
    assert scales == [0.5, 1.75]
    for pair, input_image in zip((views[:2], views[2:4], views[4:]), (others[0.5], x, others[1.75]), strict=True):
        torch.testing.assert_close(pair[0], net(input_image)[0])
        torch.testing.assert_close(pair[1], net(input_image.flip(3))[0].flip(2))


def test_scales_and_flips_average_probabilities() -> None:
    x, net, scales = image(40, 52), network(), (0.5, 1.0, 1.75)
    total = torch.zeros(CLASSES, 45, 60)
    for scale in scales:
        sides = [round(scale * side) for side in (40, 52)]
        resized = x if scale == 1 else F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
        for logits in (net(resized), net(resized.flip(3)).flip(3)):
            total += F.interpolate(logits, (45, 60), mode="bilinear", align_corners=False)[0].softmax(0)
    labels, probabilities = run(Inference(scales=scales, flip=True), x, (45, 60))
    torch.testing.assert_close(probabilities, total / 6)
    assert torch.equal(labels, probabilities.argmax(0))


def test_a_symmetric_image_is_segmented_alike_both_ways() -> None:
    half = image(40, 28)
    x, net = torch.cat([half, half.flip(3)], 3), network()
    labels, probabilities = run(Inference(flip=True), x, net=net)
    assert torch.equal(labels, labels.flip(1))
    torch.testing.assert_close(probabilities, probabilities.flip(2))


MEMORY = """
import resource, sys, torch
from swinv2_tasks.inference.segmentation import Inference, segment

def network(x):
    pooled = torch.nn.functional.avg_pool2d(x, 4)
    return pooled.repeat(1, 50, 1, 1)

x = torch.zeros(1, 3, int(sys.argv[1]), int(sys.argv[1]))
with torch.no_grad():
    segment(network, x, x.shape[2:], Inference("slide", 512, 340), 4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_for_a_large_image_is_its_logits_and_little_more() -> None:
    """150 classes at 4096×4096: logits of 600 MiB, image 192, labels 128; enlarged at once they would be 9.6 GiB."""
    small, large = (
        int(subprocess.run([sys.executable, "-c", MEMORY, side], capture_output=True, check=True).stdout)
        for side in ("256", "4096")
    )
    assert (large - small) / 1024 < 600 + 192 + 128 + 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "slides"}, "mode"),
        ({"blend": "round"}, "blend"),
        ({"crop_size": 32, "stride": 33}, "stride"),
        ({"crop_size": (32, 64), "stride": (32, 65)}, "stride"),
        ({"stride": 0}, "stride"),
        ({"sliding_window_batch_size": 0}, "sliding_window_batch_size"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
    ],
)
def test_arguments_out_of_range_are_reported(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"inference.{words}"):
        Inference(**arguments)


def test_a_window_between_the_networks_cells_is_reported() -> None:
    with pytest.raises(UserError, match="multiples of 4"):
        run(Inference("slide", 30, 20), image(40, 40))
