import subprocess
import sys

import pytest

from dgnet_keras.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "resnet5O"], r"Unknown variant 'resnet5O'.*Did you mean 'resnet50'"),
        (["list", "--family", "vgg"], "Unknown family 'vgg'"),
        (["info", "resnet50", "--max-nodes", "1"], "max_nodes.*at least 2"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.slow
def test_the_command_prints_nothing_but_its_answer():
    command = [sys.executable, "-m", "dgnet_keras", "info", "resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("resnet18: ResNetSpec(")
    assert not [
        line for line in done.stderr.splitlines() if "absl" not in line and "cuda" not in line
    ]
