"""Nothing is sent anywhere unless its address is typed: no command asks for another machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.connections import LOG, refused_connections
from tests.helpers.runs import from_last

ELSEWHERE = ("192.0.2.1", 9)
"""An address that no machine has (RFC 5737)."""

RUN_ALL = """
import json, sys

from swinv2_tasks.cli.main import main

for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert not status, arguments
"""
"""A program that runs one command after the other."""


@pytest.fixture
def own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test see what is refused, without failing for it."""
    monkeypatch.setenv(LOG, str(tmp_path / "connections.txt"))
    (tmp_path / "connections.txt").touch()


ASK: list[Callable[[], object]] = [
    lambda: socket.create_connection(ELSEWHERE, 1),
    lambda: socket.socket().connect_ex(ELSEWHERE),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ELSEWHERE),
    lambda: socket.getaddrinfo("example.org", 443),
    lambda: socket.gethostbyname("example.org"),
]


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.usefixtures("own_log")
def test_tests_reach_no_other_machine(ask: Callable[[], object]) -> None:
    # The class by its name: processes that tests start, as xdist's, have read the file before, by another way.
    with pytest.raises(RuntimeError, match="a test asks for the machine"):
        ask()
    assert len(refused_connections()) == 1


@pytest.mark.usefixtures("own_log")
def test_a_process_that_swallows_the_refusal_has_left_a_line() -> None:
    code = "import socket, contextlib\nwith contextlib.suppress(Exception): socket.getaddrinfo('example.org', 443)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert refused_connections() == ["'example.org' by -c"]


def test_tests_reach_their_own_machine() -> None:
    for host in ("localhost", "127.0.0.1"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection((host, server.getsockname()[1]), 5).close()
    first, second = socket.socketpair()
    first.sendall(b"x")
    assert second.recv(1) == b"x"


def run_all(commands: list[list[str]], folder: Path) -> None:
    """Runs commands in a new process, which imports all that they need; none may ask for another machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)  # which the package sets by itself
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert refused_connections() == []


def test_commands_ask_for_no_other_machine(
    trained: Path, images: Path, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    scenes = dataset("segmentation")
    maps = str(scenes / "annotations" / "validation")
    names = f"--class_names={scenes / 'names.txt'}"
    runs = "--runs=runs"
    commands = [
        ["fit", f"--config={trained / 'config.yaml'}", "--trainer.max_epochs=1", runs],
        ["fit", f"--config={trained / 'config.yaml'}", "--print_config"],
        ["validate", from_last(trained), runs],
        ["test", from_last(trained), runs],
        ["predict", from_last(trained), f"--data.source={images / 'val' / 'n01'}", "--output=predictions"],
        ["score", "ade20k", f"--annotations={maps}", f"--predictions={maps}", names],
        ["weights", "inspect", str(trained)],
        ["weights", "convert", str(trained), "timm.safetensors", "--format=timm"],
        ["configs"],
    ]
    run_all(commands, tmp_path)


@pytest.mark.slow
def test_commands_that_start_processes_ask_for_no_other_machine(
    trained: Path, images: Path, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    commands = [
        ["sweep", from_last(trained), "--settings", "4@32", "--runs=runs"],
        ["memory", f"--config={trained / 'config.yaml'}"],
        ["data", "check", "kinetics", str(dataset("video")), "--output=lists"],
        ["data", "optimize", "imagenet", str(images), "shards"],
        ["sample-data", "samples"],
        ["demo", "--short=true", "--runs=demo"],
    ]
    run_all(commands, tmp_path)
