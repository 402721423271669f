"""Child processes with a time limit: each is a group of its own, of which nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TAIL = 2000  # characters of a log that a record keeps


@dataclass(frozen=True)
class Finished:
    """How a command ended; `status` is None where its time ran out."""

    status: int | None
    seconds: float
    output: str

    @property
    def tail(self) -> str:
        return self.output[-TAIL:].strip()


class Child:
    """A command that writes both of its streams to a log."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd,
                start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        """Ends what is left of the group, such as a compiler's workers, and waits for the process itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # where all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def run(command: list[str], seconds: float, log: Path, env: Mapping[str, str], cwd: Path) -> Finished:
    """Runs a command for at most that long.

    Raises:
        OSError: the command cannot be started.
    """
    before = log.stat().st_size if log.exists() else 0
    child = Child(command, log, env, cwd)
    status = None
    try:
        while status is None and time.monotonic() - child.started < seconds:
            status = child.poll()
            if status is None:
                time.sleep(0.02)
    finally:
        child.end()
    output = log.read_bytes()[before:].decode(errors="replace")
    return Finished(status, time.monotonic() - child.started, output)
