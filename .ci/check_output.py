"""Runs a command, shows what it prints, and fails when something in it would make a reader think that it failed.

    python .ci/check_output.py COMMAND [ARGUMENT …]

That is a traceback, an exception that was ignored, a warning, or a message of a decoder in either stream; and on
standard error each line that is not known to be harmless. The exit status is the command's own where that is not 0,
else 1 when there were such lines, which are listed at the end, else 0.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import BinaryIO

BAD = re.compile(
    r"Traceback \(most recent call last\)"
    r"|Exception ignored"
    r"|Exception in thread"
    r"|\b\w*(?:Error|Exception)\b:"
    r"|warn(?:ing)?\b|\w+Warning\b"
    r"|Segmentation fault|core dumped"
    r"|\[\w+ @ 0x[0-9a-f]+\]"  # FFmpeg
    r"|^\[\d\d:\d\d:\d\d\] ",  # decord
    re.IGNORECASE,
)
"""What must be in no line."""

HARMLESS = re.compile(
    r"\s*$"
    r"|[\w ]+: [\d,]+ of [\d,]+(?: batches)?, about [\w ]+ left$"  # where long work stands
    r"|.*\.json: of \d+ objects "  # one of the sample data is a crowd, and what becomes of those is told
)
"""What may begin a line on standard error: how far the work has come, and what is told of sound data."""

COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run(command: list[str]) -> tuple[int, list[str]]:
    """Runs a command and passes on what it prints.

    Returns:
        Its exit status, and the lines that should not be there.
    """
    found: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        readers = [
            threading.Thread(target=watch, args=(process.stdout, sys.stdout.buffer, False, found)),
            threading.Thread(target=watch, args=(process.stderr, sys.stderr.buffer, True, found)),
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    return process.returncode, found


def watch(source: BinaryIO, target: BinaryIO, is_error: bool, found: list[str]) -> None:
    """Passes on a stream, and collects its bad lines."""
    for line in source:
        target.write(line)
        target.flush()
        for text in re.split(r"[\r\n]", COLORS.sub("", line.decode(errors="replace"))):
            if BAD.search(text) or (is_error and not HARMLESS.match(text)):
                found.append(text)


def main(command: list[str]) -> int:
    """Runs a command and lists its bad lines; returns the exit status, 2 where there is no command."""
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    status, found = run(command)
    if found:
        print(f"\n{len(found)} lines that a reader would take for a failure:", file=sys.stderr)
        for line in found[:50]:
            print(f"  {line}", file=sys.stderr)
    return status or int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
