"""Watching a run from outside."""

import contextlib
import time


def logged_steps(workdir):
    """Steps that Orbit has logged for the run in `workdir`, in order, with repetitions."""
    lines = (workdir / "train.log").read_text().splitlines()
    return [int(line.split()[3]) for line in lines if line.startswith("train | step:")]


def wait_for_step(workdir, step, seconds=300):
    """Waits until a run has logged the step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if max(logged_steps(workdir), default=0) >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"{workdir} did not reach step {step} in {seconds} s")
