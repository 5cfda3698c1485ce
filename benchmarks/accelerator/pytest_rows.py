"""A plugin of pytest: a row for each test as it ends, and none of those that have passed before."""

import os
import pathlib

from benchmarks.accelerator.workers import ROWS, send

DONE = "DGNET_ACCELERATOR_DONE"  # file of the names of tests that have passed


def pytest_collection_modifyitems(config, items):
    """Leaves out what has passed."""
    done = set(pathlib.Path(os.environ[DONE]).read_text().splitlines())
    again = [item for item in items if item.nodeid in done]
    config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logreport(report):
    """Sends a row for a test that has run, or has failed before or after."""
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        row = {"outcome": report.outcome}
        if report.outcome == "failed":
            message = crash.message if crash else str(report.longrepr)
            row["error"] = message.strip().partition("\n")[0] or "failed"
        settings = {"part": "tests", "test": report.nodeid}
        send({"settings": settings, "repeats": {}, **row})


def pytest_configure(config):
    """The processes that run the tests send nothing; the one over them does."""
    if hasattr(config, "workerinput"):
        os.environ.pop(ROWS, None)
