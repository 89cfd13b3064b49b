"""On a CUDA device: training in half precision, compiled as eager, nothing left on the CPU, no waiting in a step."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import AdamW

from swinv2_tasks.backbone import BiasTable, LinearCPB, LogCPB, SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.optim import CosineSchedule, build_optimizer
from tests.helpers import motions, objects, photos, scenes
from tests.helpers.checkpoints import randomize
from tests.helpers.processes import run, send_at
from tests.helpers.resuming import EMA, RESUME, assert_same_training, write_run
from tests.helpers.tiny import new_data, new_task, new_trainer, write_config, write_images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),
]

BIASES = pytest.mark.parametrize("position_bias", [LogCPB, LinearCPB, BiasTable])


def task_with_padding(position_bias: type[nn.Module] = LogCPB, **arguments: Any) -> Any:
    """Regular and shifted blocks; maps of 44×33 pixels are padded and masked in both stages."""
    backbone = SwinTransformerV2(16, (2, 2), (1, 2), 4, position_bias=position_bias, **arguments)
    return ClassificationTask(backbone, 7)


def batch(device: str = "cuda", several_labels: bool = False) -> Any:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(6, 7, generator=generator).softmax(1) if several_labels else torch.arange(6)
    return {"image": torch.randn(6, 3, 44, 33, generator=generator).to(device), "label": labels.to(device)}


# ---- training


class Losses(Callback):
    """Keeps each step's loss on the device."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].detach())


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_stays_finite_and_learns(precision: str, images: Path, tmp_path: Path) -> None:
    """200 steps, the gradients clipped as in the published recipe."""
    torch.manual_seed(0)
    losses = Losses()
    trainer = new_trainer(
        tmp_path,
        losses,
        accelerator="gpu",
        devices=1,
        precision=precision,
        max_epochs=-1,
        max_steps=200,
        gradient_clip_val=5.0,
    )
    task = new_task(optimizer=partial(AdamW, lr=3e-3))
    trainer.fit(task, new_data(images))
    values = torch.stack(losses.values).float().tolist()
    assert len(values) == 200
    assert all(map(math.isfinite, values))
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert sum(values[-10:]) < sum(values[:10]) / 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_command_line_trains_evaluates_and_predicts(precision: str, images: Path, tmp_path: Path) -> None:
    gpu = {"accelerator": "gpu", "devices": 1, "precision": precision}
    config = write_config(tmp_path / "config.yaml", images, trainer=gpu, data={"init_args": {"num_workers": 2}})
    runs = f"--runs={tmp_path / 'runs'}"
    assert main(["fit", f"--config={config}", runs]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'runs' / 'tiny' / '0' / 'checkpoints' / 'best.ckpt'}"
    options = [f"--trainer.{name}={value}" for name, value in gpu.items()]
    assert main(["validate", checkpoint, runs, *options]) == 0
    assert main(["predict", checkpoint, runs, *options, f"--data.source={images / 'val'}"]) == 0
    assert (tmp_path / "runs" / "tiny" / "predict_0" / "predictions" / "predictions.csv").is_file()


def test_segmentation_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    """With kernels that are deterministic; by windows as well, whose logits leave the device as they are done."""
    data = scenes.write_scenes(tmp_path / "scenes")
    gpu = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    config = scenes.write_config(tmp_path / "scenes.yaml", data, trainer=gpu)
    runs = f"--runs={tmp_path / 'runs'}"
    assert main(["fit", f"--config={config}", runs, "--trainer.deterministic=true"]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'runs' / 'scenes' / '0' / 'checkpoints' / 'last.ckpt'}"
    options = [f"--trainer.{name}={value}" for name, value in gpu.items()]
    slide = ["--model.inference.mode=slide", "--model.inference.crop_size=32", "--model.inference.stride=16"]
    scales = ["--model.inference.scales=[0.5, 1.0]", "--model.inference.flip=true"]
    assert main(["validate", checkpoint, runs, *options, *slide, *scales]) == 0
    assert main(["predict", checkpoint, runs, *options, f"--data.source={data / 'images' / 'validation'}"]) == 0
    assert len([*(tmp_path / "runs" / "scenes" / "predict_0" / "predictions" / "labels").iterdir()]) == 5


@pytest.mark.parametrize("detector", ["MaskRCNNConfig", "CascadeMaskRCNNConfig", "HTCConfig"])
def test_detection_trains_evaluates_and_predicts(detector: str, tmp_path: Path) -> None:
    data = objects.write_objects(tmp_path / "objects")
    gpu = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    settings = {"class_path": f"swinv2_tasks.heads.{detector}", "init_args": objects.DETECTOR}
    config = objects.write_config(
        tmp_path / "objects.yaml", data, trainer=gpu, model={"init_args": {"detector": settings}}
    )
    runs = f"--runs={tmp_path / 'runs'}"
    assert main(["fit", f"--config={config}", runs]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'runs' / 'objects' / '0' / 'checkpoints' / 'last.ckpt'}"
    options = [f"--trainer.{name}={value}" for name, value in gpu.items()]
    how = ["--model.inference.scales=[1.0, 1.5]", "--model.inference.flip=true", "--model.inference.nms=soft_linear"]
    assert main(["validate", checkpoint, runs, *options, *how]) == 0
    assert main(["predict", checkpoint, runs, *options, f"--data.source={data / 'val2017'}"]) == 0
    assert (tmp_path / "runs" / "objects" / "predict_0" / "predictions" / "detections.json").is_file()


def test_detections_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    task = objects.new_detector().eval()
    randomize(task)
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 50)]
    expected = task(images)
    with torch.backends.cudnn.flags(allow_tf32=False):
        detections = task.cuda()([image.cuda() for image in images])
    for own, reference in zip(detections, expected, strict=True):
        assert own["boxes"].is_cuda and len(own["boxes"]) == len(reference["boxes"]) > 0
        torch.testing.assert_close(own["boxes"].cpu(), reference["boxes"], atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(own["scores"].cpu(), reference["scores"], atol=1e-3, rtol=1e-3)


def test_video_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    data = motions.write_motions(tmp_path / "motions", train=6, val=3)
    gpu = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    config = motions.write_config(tmp_path / "motions.yaml", data, trainer=gpu)
    runs = f"--runs={tmp_path / 'runs'}"
    assert main(["fit", f"--config={config}", runs]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'runs' / 'motions' / '0' / 'checkpoints' / 'last.ckpt'}"
    options = [f"--trainer.{name}={value}" for name, value in gpu.items()]
    assert main(["validate", checkpoint, runs, *options, "--data.views.val=[2,3]"]) == 0
    assert main(["predict", checkpoint, runs, *options, f"--data.source={data / 'val'}"]) == 0
    predictions = tmp_path / "runs" / "motions" / "predict_0" / "predictions" / "predictions.csv"
    assert len(predictions.read_text().splitlines()) == 1 + 6


def test_simmim_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    data = photos.write_photos(tmp_path / "photos")
    gpu = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    config = photos.write_config(tmp_path / "photos.yaml", data, trainer=gpu)
    runs = f"--runs={tmp_path / 'runs'}"
    assert main(["fit", f"--config={config}", runs]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'runs' / 'photos' / '0' / 'checkpoints' / 'last.ckpt'}"
    options = [f"--trainer.{name}={value}" for name, value in gpu.items()]
    assert main(["validate", checkpoint, runs, *options]) == 0
    assert main(["predict", checkpoint, runs, *options, f"--data.source={data / 'val'}"]) == 0
    predictions = tmp_path / "runs" / "photos" / "predict_0" / "predictions" / "predictions.csv"
    assert len(predictions.read_text().splitlines()) == 1 + 12


# ---- devices


@BIASES
@torch.no_grad()
def test_a_task_used_on_the_cpu_moves_whole(position_bias: type[nn.Module]) -> None:
    """Masks, coordinates and limits that were made on the CPU do not stay there."""
    task = randomize(task_with_padding(position_bias)).eval()
    expected = task(batch("cpu")["image"])
    task.cuda()
    assert all(tensor.is_cuda for tensor in (*task.parameters(), *task.buffers()))
    torch.testing.assert_close(task(batch()["image"]).cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(task.cpu()(batch("cpu")["image"]), expected)


@torch.no_grad()
def test_a_checkpoint_goes_to_the_device_asked_for(images: Path, tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, accelerator="gpu", devices=1)
    trainer.validate(new_task(), new_data(images), verbose=False)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt", map_location="cuda")
    assert all(parameter.is_cuda for parameter in loaded.parameters())
    assert loaded(torch.zeros(1, 3, 32, 32, device="cuda")).shape == (1, 3)


# ---- compiled


def loss_and_gradients(task: ClassificationTask) -> list[Tensor]:
    loss = task.training_step(batch(), 0)
    loss.backward()
    return [loss.detach(), *(p.grad for p in task.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("fresh_compiler")
@BIASES
def test_compiled_training_equals_eager(position_bias: type[nn.Module]) -> None:
    eager: Any = randomize(task_with_padding(position_bias)).cuda()
    compiled = copy.deepcopy(eager)
    compiled.backbone.compile(fullgraph=True)
    expected, tensors = loss_and_gradients(eager), loss_and_gradients(compiled)
    assert len(tensors) == len(expected) == 1 + len(list(eager.parameters()))
    for own, reference in zip(tensors, expected, strict=True):
        assert (own - reference).norm() <= 1e-3 * reference.norm() + 1e-6


@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_compiled_bfloat16_stays_as_close_to_float32_as_eager() -> None:
    task: Any = randomize(task_with_padding()).cuda().eval()
    x = batch()["image"]
    exact = task(x)
    with torch.autocast("cuda", torch.bfloat16):
        eager = task(x).float()
        task.backbone.compile(fullgraph=True)
        compiled = task(x).float()
    assert (eager - exact).norm() < 0.1 * exact.norm()
    assert (compiled - exact).norm() < 2 * (eager - exact).norm() + 1e-3 * exact.norm()


# ---- waiting


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """Call it once everything is warm: from then on, a step that waits for the device is an error."""
    yield partial(torch.cuda.set_sync_debug_mode, "error")
    torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_an_error(no_waiting: Any) -> None:
    """Were it not, the tests below would pass whatever the steps do."""
    x = torch.ones(1, device="cuda")
    no_waiting()
    with pytest.raises(RuntimeError, match="synchroniz"):
        x.item()


@BIASES
@pytest.mark.parametrize("several_labels", [False, True])
def test_a_training_step_waits_for_nothing(
    several_labels: bool, position_bias: type[nn.Module], no_waiting: Any
) -> None:
    task = task_with_padding(position_bias, drop_path_rate=0.2).cuda().train()
    optimizer, scheduler = build_optimizer(
        partial(AdamW, lr=1e-3), task.named_parameters(), task.backbone.depths, CosineSchedule(), 6, 10, 10
    )
    samples = batch(several_labels=several_labels)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = task.training_step(samples, 0)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    step()  # coordinates and masks are made once per geometry
    torch.cuda.synchronize()
    no_waiting()
    step()
    step()


@pytest.mark.parametrize("several_labels", [False, True])
def test_an_evaluation_step_waits_for_nothing(several_labels: bool, no_waiting: Any) -> None:
    task = task_with_padding().cuda().eval()
    samples = batch(several_labels=several_labels)
    with torch.inference_mode():
        task.validation_step(samples, 0)
        torch.cuda.synchronize()
        no_waiting()
        task.validation_step(samples, 1)


def test_steps_over_clips_wait_for_nothing(no_waiting: Any) -> None:
    task: Any = motions.new_video_task().cuda().train()
    optimizer = AdamW(task.parameters(), lr=1e-3)
    labels = torch.arange(4, device="cuda") % 2
    samples = {
        "clip": torch.randn(4, 3, 3, 8, 44, 33, device="cuda"),
        "label": labels,
        "video_id": torch.arange(4, device="cuda"),
    }

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = task.train().training_step(samples, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.inference_mode():
            task.eval().validation_step(samples, 0)

    step()  # coordinates and masks are made once per geometry
    torch.cuda.synchronize()
    no_waiting()
    step()
    step()


# ---- resuming


def test_a_disturbed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """With kernels that are deterministic, also on the device; averaged weights, DataLoader workers, half precision."""
    data = write_images(tmp_path / "images", train=20)
    straight, disturbed = (write_run(tmp_path / name, data, EMA) for name in ("straight", "disturbed"))
    device = ("--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.deterministic=true")
    options = (
        "--trainer.max_epochs=3",
        "--save.every_n_steps=3",
        "--data.num_workers=2",
        "--trainer.precision=bf16-mixed",
    )
    first = ("fit", "--config=tiny.yaml", *device, *options)
    assert run(first, straight).status == 0
    assert run(first, disturbed, **send_at(14)).status == -9
    assert run(RESUME, disturbed, **send_at(20, number=signal.SIGTERM)).status == 143
    assert run(RESUME, disturbed).status == 0
    assert_same_training(straight, disturbed)
