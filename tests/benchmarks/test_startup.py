import json
import pathlib
import sys

import pytest

from benchmarks import startup

ROOT = pathlib.Path(__file__).parents[2]
SLOW = "import time; print('one', flush=True); time.sleep(0.5); print('two', flush=True)"


def test_a_command_is_stopped_at_the_line_that_is_waited_for():
    assert 0.5 < startup.seconds_to_line([sys.executable, "-c", SLOW], "two") < 20


def test_a_command_that_fails_is_no_time():
    failing = [sys.executable, "-c", "import sys; sys.exit('broken')"]
    with pytest.raises(RuntimeError, match="ended with 1: broken"):
        startup.seconds_of(failing)
    with pytest.raises(RuntimeError, match="without a line of 'two'"):
        startup.seconds_to_line(failing, "two")
    assert startup.seconds_of(failing, expected=1) < 20


def test_the_document_has_the_rows():
    rows = json.loads((ROOT / "benchmarks" / "results" / "startup.json").read_text())
    document = (ROOT / "docs" / "performance.md").read_text()
    assert "\n".join(startup.table(rows)) in document
