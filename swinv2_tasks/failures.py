"""What a machine refuses, in a line: no room on a disk, no memory, no more open files, a lost process of a run.

Python, torch and Lightning raise these wherever they happen to be. Which file it was, and what helps, is all that a
user can do something with.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from swinv2_tasks.text import printable

_ROOM = "make room there, or name another place"
_RIGHTS = "make it accessible to this user, or name another"
_FEWER_FILES = "raise the limit (ulimit -n 65536), or set --data.num_workers 0"
_DEVICE = "the disk or the network that it lies on fails: look at it, and start again from another"

REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "files may not be so large here (ulimit -f, or the file system's limit): name another place",
    errno.EROFS: "the file system is read-only: name another place",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EMFILE: _FEWER_FILES,
    errno.ENFILE: _FEWER_FILES,
    errno.EAGAIN: "this user may start no more processes (ulimit -u): set --data.num_workers 0, or end others",
    errno.EIO: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.ENODEV: _DEVICE,
    errno.ETIMEDOUT: _DEVICE,
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: name the file itself",
    errno.EISDIR: "it is a folder, where a file is needed: name another",
    errno.ENOTDIR: "a part of the path is a file, where a folder is needed: name another",
    errno.EEXIST: "it is there already: remove it, or name another",
    errno.ENOENT: "it is missing: check its name, and whether something else removes it",
}
"""What helps against the errors of an operating system, by their numbers."""

MEMORY = (
    "memory ran out ({what}). Lower data.batch_size or data.num_workers, or take a smaller model or image; "
    "swinv2-tasks memory --config CONFIG says what a training takes."
)

SHARED_MEMORY = (
    "shared memory is full (/dev/shm, through which DataLoader workers pass batches on). Give the container more, as "
    "docker run --shm-size=8g does, or set --data.num_workers 0, which needs none."
)

LOST_PROCESS = (
    "this process has lost the others of its run: one of them has ended, and its own message says why. The run resumes "
    "from its last checkpoint: swinv2-tasks fit --resume RUN."
)

_SHARED = re.compile(
    r"unable to (write to|resize|mmap|allocate|open) .*(shared memory|file <?/torch_|</torch_)|Bus error"
)
_ALLOCATOR = re.compile(
    r"DefaultCPUAllocator.*|not enough memory.*|(CUDA|HIP|MPS backend) out of memory.*|Cannot allocate memory|"
    r"std::bad_alloc|(Unable|failed) to allocate .*",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|Socket (closed|Timeout)|recvValue failed|"
    r"sendBytes failed|Timed out waiting|NCCL.*(remote|unhandled system) error|DDP expects same model across|"
    r"watchdog|store->get|gloo/transport",
    re.IGNORECASE,
)


def explain_failure(error: BaseException) -> str | None:
    """What a machine has refused, and what helps; None where an error is of another kind.

    Args:
        error: one that ended a command.
    """
    for cause in _causes(error):
        message = str(cause)
        if isinstance(cause, MemoryError):
            return MEMORY.format(what=message.splitlines()[0][:160] if message else "Python could not get any more")
        if isinstance(cause, RuntimeError):
            if _SHARED.search(message):
                return SHARED_MEMORY
            if (match := _ALLOCATOR.search(message)) is not None:
                return MEMORY.format(what=match[0].splitlines()[0].rstrip(". ")[:160])
            if {"LOCAL_RANK", "RANK", "WORLD_SIZE"} & os.environ.keys() and _LOST.search(message):
                return LOST_PROCESS
        if isinstance(cause, OSError) and cause.errno is not None:
            return _explain_os_error(cause)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _explain_os_error(error: OSError) -> str:
    if error.errno == errno.ENOMEM:
        return MEMORY.format(what=error.strerror)
    if "/dev/shm" in str(error.filename):
        return SHARED_MEMORY
    file = printable(os.fsdecode(error.filename)) if error.filename else "a file, or what is printed"
    remedy = REMEDIES.get(error.errno or 0, "see to that, and start again")
    return f"{file}: {error.strerror}; {remedy}."
