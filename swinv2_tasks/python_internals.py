"""What is used of Python's standard library beyond its public interface, and nowhere else.

``tests/test_fences.py`` names each private member that is gone.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from concurrent.futures import ProcessPoolExecutor

__all__ = ["kill_workers", "python3_name"]


def python3_name(module: str, name: str) -> tuple[str, str]:
    """What Python 3's unpickler makes of a name in a pickle of Python 2."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """Kills a pool's processes and closes it; from Python 3.14 on ``ProcessPoolExecutor.kill_workers`` does so."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
