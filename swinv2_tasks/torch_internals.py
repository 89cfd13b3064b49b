"""What is used of torch beyond its public interface, and nowhere else.

Whoever needs a private member of torch, one whose name or module begins with an underscore, takes it from here under a
name of its own. ``tests/test_fences.py`` names each that is gone, and holds pyproject.toml's bounds of torch.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _get_default_store
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

__all__ = [
    "READ_SCALAR",
    "FakeTensorMode",
    "ForkSafeDataLoader",
    "TorchDispatchMode",
    "WorkerStalled",
    "check",
    "check_archive",
    "efficient_attention",
    "end_workers",
    "group_store",
    "plain_attention",
    "softmax_backward",
    "storage_key",
    "tree_leaves",
    "uncompiled",
    "unscales_gradients",
    "version_of",
]

# ---- tensors


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; those made in inference mode do not count it."""
    return tensor._version


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that no other storage has as long as this one lives, also where it has no data."""
    return storage._cdata


def check(condition: Any) -> None:
    """Tells the exporter of a graph what holds of sizes that depend on data; elsewhere, raises where it does not.

    Raises:
        RuntimeError: the condition is false.
    """
    torch._check(condition)


# ---- operations


def softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The gradient of what a softmax over ``dim``, of inputs of a type, made ``output`` of."""
    return torch.ops.aten._softmax_backward_data(grad, output, dim, dtype)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``scaled_dot_product_attention`` where no kernel of its own fits."""
    return torch.ops.aten._scaled_dot_product_attention_math(q, k, v, mask, scale=scale)[0]


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``scaled_dot_product_attention`` by its memory-efficient kernel, which takes tensors of a GPU and fake ones.

    What the backward pass needs is kept.
    """
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, scale=scale)[0]


READ_SCALAR = torch.ops.aten._local_scalar_dense.default
"""The operation that gives Python the value of a tensor of one element."""

# ---- modules and optimizers


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped; any other unchanged."""
    return getattr(module, "_orig_mod", module)


def unscales_gradients(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes the gradient scaler's factor out of gradients by itself, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# ---- files


def check_archive(path: Path) -> None:
    """Reads the directory of a file that ``torch.save`` wrote as torch does.

    Raises:
        RuntimeError: it is none of an archive, or a wrong one.
    """
    torch._C.PyTorchFileReader(str(path))


# ---- processes of a group


def group_store() -> Store | None:
    """A connection of its own to what the processes of a group tell each other; None where it is no server's."""
    store: Any = _get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store.clone() if isinstance(store, TCPStore) else None


# ---- DataLoader workers


class WorkerStalled(RuntimeError):
    """A DataLoader has waited for a batch too long.

    Args:
        pid: the process of the worker whose batch is the next one; None where that is not known.
        seconds: how long it was waited for.
    """

    def __init__(self, pid: int | None, seconds: float) -> None:
        super().__init__(f"no batch for {seconds:.0f} s")
        self.pid = pid
        self.seconds = seconds


class ForkSafeDataLoader(DataLoader):
    """A DataLoader whose workers are ended by none but the process that started them, and not waited for forever.

    Attributes:
        find_limit: gives, by a worker's process, the seconds after which waiting for it ends in ``WorkerStalled``.
    """

    find_limit: Callable[[int | None], float] = staticmethod(lambda pid: math.inf)

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _ForkSafeIterator(self) if self.num_workers else super()._get_iterator()


class _ForkSafeIterator(_MultiProcessingDataLoaderIter):
    """torch's iterator, which would end its workers wherever it is collected, and miss the death of some.

    What a process has forked holds copies of all iterators of that process. One that nobody refers to any more, of an
    earlier run, say, is collected in the workers of the next one as well, where ending its workers cannot but fail.
    """

    def __init__(self, loader: ForkSafeDataLoader) -> None:
        self._process = os.getpid()
        self._find_limit = loader.find_limit
        self._is_waiting, self._is_ending, self._is_ended = False, False, False
        self._waited = 0.0
        self._stall: WorkerStalled | None = None
        super().__init__(loader)
        threading.Thread(target=_watch, args=(weakref.ref(self),), name="stalled workers", daemon=True).start()

    def _get_data(self) -> Any:
        self._is_waiting, self._waited = True, 0.0
        try:
            return super()._get_data()
        except Exception as error:
            if self._stall is not None:
                raise self._stall from error
            raise
        finally:
            self._is_waiting = False

    def wait_on(self, seconds: float) -> bool:
        """Counts time that has passed, and kills workers that were waited for too long: for a batch, or for their end.

        Not by a timeout of the queue: what is in it may have to be fetched from a worker, which no timeout ends.

        Returns:
            Whether there is anything left to wait for.
        """
        if self._is_ending:
            self._waited += seconds
            if self._waited > 3:
                self.kill_workers()
                return False
        elif self._is_waiting:
            self._waited += seconds
            pid = self._next_worker()
            if self._waited >= self._find_limit(pid):
                self._stall = WorkerStalled(pid, self._waited)
                self.kill_workers()
        return self._stall is None and not self._is_ended

    def _try_get_data(self, *timeout: float) -> tuple[bool, Any]:
        try:
            return super()._try_get_data(*timeout)
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            # What a worker has sent is fetched from it, and one that is killed is found alive for a moment after.
            if dead := self._wait_for_death():
                pids = ", ".join(str(worker.pid) for worker in dead)
                raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error
            raise

    def _wait_for_death(self, seconds: float = 5) -> list[Any]:
        """The workers that are dead, once one is; none, if all live on."""
        end = time.monotonic() + seconds
        while not (dead := [worker for worker in self._workers if not worker.is_alive()]):
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        return dead

    def _next_worker(self) -> int | None:
        """The process that the next batch comes from."""
        worker = self._task_info.get(self._rcvd_idx, (None,))[0]
        return None if worker is None else self._workers[worker].pid

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._process or self._is_ended:
            return
        self._is_ending, self._waited = True, 0.0
        super()._shutdown_workers()
        self._is_ending, self._is_ended = False, True
        # One that hangs, or was stopped, would be waited for as the process ends, as long as it lives; and while Python
        # ends, torch has not ended any.
        if any(worker.is_alive() for worker in self._workers):
            self.kill_workers()

    def kill_workers(self) -> None:
        """Ends the workers at once, without torch taking their deaths for a failure."""
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False
        for worker in self._workers:
            worker.kill()


def _watch(reference: weakref.ref[_ForkSafeIterator], interval: float = 1.0) -> None:
    """Tells an iterator of the time, as long as there is one; a process that was stopped itself counts no more."""
    while True:
        time.sleep(interval)
        iterator = reference()
        if iterator is None or not iterator.wait_on(interval):
            return
        del iterator


def end_workers(loader: DataLoader, at_once: bool = False) -> None:
    """Ends a loader's workers, which it would keep for the next epoch; another iteration starts new ones.

    Args:
        loader: their loader.
        at_once: by a kill, as they may hang.
    """
    iterator: Any = loader._iterator
    loader._iterator = None
    if iterator is not None and loader.num_workers:
        if at_once:
            iterator.kill_workers()
        iterator._shutdown_workers()
