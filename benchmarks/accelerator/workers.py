"""Processes that measure: rows come back as they are there, and a fault ends no more than one."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time

from benchmarks import measure

ROWS = "DGNET_ACCELERATOR_ROWS"  # the file descriptor that rows are written to


def send(row):
    """Writes a row, in the process that measures; nowhere if no `Worker` started it."""
    if ROWS in os.environ:
        os.write(int(os.environ[ROWS]), json.dumps(row).encode() + b"\n")


class Worker:
    """A process that sends rows. It and what it has started end with the context.

    Args:
        command: list of its words.
        log: binary file for what it prints.
        until: `time.monotonic()` at which it must end.
        environment: dict of variables beside those of this process.
    """

    def __init__(self, command, log, until, environment):
        self._until = until
        self._rows, theirs = os.pipe()
        self._process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=measure.ROOT,
            pass_fds=[theirs],
            start_new_session=True,
            env={**os.environ, **environment, ROWS: str(theirs)},
        )
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self._rows)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def rows(self):
        """Yields the rows as they come, until there are no more or the time is over."""
        rest = b""
        while True:
            left = self._until - time.monotonic()
            if left <= 0 or not select.select([self._rows], [], [], left)[0]:
                return
            read = os.read(self._rows, 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from map(json.loads, lines)

    def exit_code(self):
        """Waits for the process; None if it has not ended when the time is over."""
        try:
            return self._process.wait(max(self._until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return None
