"""`--help` of every command has an example of how to call it."""

import importlib
import shlex

import pytest

from dgnet_keras.__main__ import parse_args

COMMANDS = [
    *("train.imagenet", "train.coco", "train.preview"),
    *(
        f"benchmarks.{name}"
        for name in (
            *("ablation", "accuracy", "detection", "grouped_conv", "headroom", "serving"),
            *("serving.model_server", "speed", "speed_markdown", "training", "variants"),
        )
    ),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_module_that_is_a_command(name, capsys):
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m {name} " in text.partition("\n")[2]  # not in the usage line alone


@pytest.mark.parametrize(
    "name", ["list", "info", "adapt", "plot", "export", "predict", "serve-config"]
)
def test_a_command_of_the_package(name, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args([name, "--help"])
    assert ended.value.code == 0
    example = " ".join(
        capsys.readouterr().out.partition("Example: python -m dgnet_keras ")[2].split()
    )
    assert parse_args(shlex.split(example)).command == name
