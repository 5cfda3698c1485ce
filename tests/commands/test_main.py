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


@pytest.mark.parametrize(
    "line",
    [
        "predict MISSING images",
        "predict served MISSING",
        "predict served images MISSING/cat.png",
        "plot MISSING images",
        "plot run MISSING",
        "export MISSING out",
        "export run out --labels MISSING",
        "serve-config MISSING",
        "adapt MISSING --data-dir images --workdir out",
    ],
)
def test_a_path_that_does_not_exist_is_named_as_that(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "served", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "cat.png").touch()
    arguments = [part.replace("MISSING", "runs/digits") for part in line.split()]
    message = (
        r"^dgnet_keras: runs/digits\S* does not exist: there is no runs\. Did you mean 'run'\?$"
    )
    with pytest.raises(SystemExit, match=message):
        main(arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "served", "run"}


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    with pytest.raises(SystemExit, match=r"model is a link to \S*gone, which does not exist"):
        main(["predict", str(tmp_path / "model"), str(tmp_path)])


@pytest.mark.slow
def test_the_command_prints_nothing_but_its_answer():
    command = [sys.executable, "-m", "dgnet_keras", "info", "resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("resnet18: ResNetSpec(")
    assert not [
        line for line in done.stderr.splitlines() if "absl" not in line and "cuda" not in line
    ]
