"""Tests reach no machine but their own: what asks for another is refused, and fails its test.

An audit hook refuses the connection in this process and in the Python processes that it starts: these read
``at_start/sitecustomize.py``, which is on their path. Whoever swallows the refusal, as code that looks for newer
versions does, has left a line in a file by then.

Nothing but the standard library is imported here: each process reads this file before anything else.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

LOG = "SWINV2_TESTS_CONNECTIONS"
"""Environment variable: the file to which refused connections are written."""

AT_START = Path(__file__).parent / "at_start"


class Refused(RuntimeError):
    """Another machine was asked for."""


def refuse_other_machines() -> None:
    """From now on, this process reaches nothing but this machine. There is no way back."""
    sys.addaudithook(_refuse)


def python_path(*folders: str | Path) -> str:
    """PYTHONPATH for a process that finds modules in these folders, and reaches no other machine either."""
    return os.pathsep.join(map(str, [AT_START, *folders]))


def refused_connections() -> list[str]:
    """What has been asked for so far, by this process or those that it started."""
    return Path(os.environ[LOG]).read_text().splitlines()


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments[0], arguments[1]
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or address is None:  # connected before
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return

    if not _is_this_machine(host):
        with suppress(KeyError, OSError), open(os.environ[LOG], "a") as file:
            file.write(f"{host!r} by {os.path.basename(sys.argv[0]) if hasattr(sys, 'argv') else 'Python'}\n")
        raise Refused(f"a test asks for the machine {host!r}; nothing is sent anywhere unless its address is typed")


def _is_this_machine(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a name
        return False
    return address.is_loopback or address.is_unspecified
