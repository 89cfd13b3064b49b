"""Batch norm over processes gives what one process gives with all samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from swinv2_tasks.heads.batch_norm import BatchNorm2d, synchronize


def samples() -> tuple[Tensor, Tensor]:
    """All processes' inputs, and weights of a sum over the outputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, 5, 6, generator=generator) * 3 + 7, torch.randn(8, 4, 5, 6, generator=generator)


def randomize_norm(norm: nn.BatchNorm2d) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4, generator=generator) + 0.5)  # type: ignore[union-attr]
    return norm


class NormOfSome(nn.Module):
    """Norm of the samples that are chosen: their number is not known before it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = randomize_norm(BatchNorm2d(4)).eval()

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        return self.norm(x[chosen])


def test_an_exported_norm_is_that_of_eval_mode() -> None:
    module, (x, _) = NormOfSome(), samples()
    program = torch.export.export(module, (x, torch.arange(8) > 3)).module()
    for chosen in (torch.arange(8) > 3, torch.arange(8) > 6, torch.arange(8) > 7):
        torch.testing.assert_close(program(x, chosen), module(x, chosen))


def run_process(rank: int, folder: str, shares: tuple[int, int]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm = randomize_norm(BatchNorm2d(4))
    inputs, weights = (x[: sum(shares)].split(shares)[rank] for x in samples())
    inputs = inputs.clone().requires_grad_()
    outputs = norm(inputs)
    (outputs * weights).sum().backward()
    for parameter in norm.parameters():
        torch.distributed.all_reduce(parameter.grad)
    tensors = {"outputs": outputs.detach(), "inputs": inputs.grad}
    tensors |= {f"grad {name}": parameter.grad for name, parameter in norm.named_parameters()}
    torch.save(tensors | norm.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [pytest.param((3, 5), marks=pytest.mark.slow), (0, 8)])
def test_two_processes_normalize_as_one(shares: tuple[int, int], tmp_path: Path) -> None:
    """Also where one of them has no sample, as a detector without a proposal."""
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path), shares), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    norm = randomize_norm(nn.BatchNorm2d(4))
    inputs, weights = samples()
    inputs.requires_grad_()
    outputs = norm(inputs)
    (outputs * weights).sum().backward()
    expected = {"outputs": outputs.detach(), "inputs": inputs.grad}
    for name, value in expected.items():
        torch.testing.assert_close(torch.cat([part[name] for part in results]), value, rtol=1e-4, atol=1e-5)
    for part in results:
        for name, parameter in norm.named_parameters():
            torch.testing.assert_close(part[f"grad {name}"], parameter.grad, rtol=1e-4, atol=1e-4)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(part[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_without_a_sample_in_any_process_the_running_statistics_stay(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path), (0, 0)), nprocs=2)
    norm = randomize_norm(nn.BatchNorm2d(4))
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result["outputs"].shape == result["inputs"].shape == (0, 4, 5, 6)
        assert torch.equal(result["running_mean"], norm.running_mean)
        assert torch.equal(result["running_var"], norm.running_var)
        assert not result["grad weight"].any()
        assert not result["grad bias"].any()


def test_one_process_normalizes_as_torch_does() -> None:
    inputs = samples()[0]
    ours, torchs = randomize_norm(BatchNorm2d(4)), randomize_norm(nn.BatchNorm2d(4))
    for training in (True, False):
        assert torch.equal(ours.train(training)(inputs), torchs.train(training)(inputs))
    assert all(torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_a_lone_value_per_channel_takes_the_running_statistics() -> None:
    norm = randomize_norm(BatchNorm2d(4))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    inputs = torch.randn(1, 4, 1, 1)
    outputs = norm.train()(inputs)
    torch.testing.assert_close(outputs, norm.eval()(inputs))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_on_gpus_torchs_own_takes_its_place() -> None:
    """Only its kind is looked at: it runs on GPUs alone."""
    head = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm2d(4))
    names = set(head.state_dict())
    synchronize(head, torch.device("cpu"))
    assert type(head[1]) is BatchNorm2d
    synchronize(head, torch.device("cuda"))
    assert type(head[1]) is nn.SyncBatchNorm
    assert set(head.state_dict()) == names
