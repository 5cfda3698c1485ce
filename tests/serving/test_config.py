import json
import os
import shutil
import socket
import subprocess
import threading

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dgnet_keras.serving import config as serving_config
from dgnet_keras.serving.config import write_serving_config


@pytest.fixture
def models(tmp_path):
    """Folders of two models: "birds" with the versions 1, 2 and 10, "fish.v2" with 3."""
    for name in ("birds/1", "birds/2", "birds/10", "fish/3", "birds/.4-scratch", "empty/1"):
        (tmp_path / name).mkdir(parents=True)
        if not name.startswith("empty"):
            (tmp_path / name / "saved_model.pb").touch()
    return {"birds": tmp_path / "birds", "fish.v2": str(tmp_path / "fish")}


def model_configs(paths):
    text = paths[0].read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return config.model_config_list.config


def test_models_config_is_what_the_server_parses(models, tmp_path):
    paths = write_serving_config(
        models,
        tmp_path / "new" / "out",
        versions={"birds": [10, 2]},
        labels={"birds": {"stable": 2, "canary": 10}},
    )
    birds, fish = model_configs(paths)
    assert (birds.name, birds.base_path) == ("birds", "/models/birds")
    assert birds.model_platform == "tensorflow"
    assert list(birds.model_version_policy.specific.versions) == [2, 10]
    assert dict(birds.version_labels) == {"stable": 2, "canary": 10}
    assert (fish.name, fish.base_path) == ("fish.v2", "/models/fish.v2")
    assert not fish.HasField("model_version_policy")


@pytest.mark.parametrize(("size", "allowed"), [(1, [1]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_the_largest_allowed_batch_is_the_maximum(models, tmp_path, size, allowed):
    paths = write_serving_config(models, tmp_path, max_batch_size=size, batch_timeout_micros=750)
    lines = paths[1].read_text().splitlines()
    given = [int(line.split(": ")[1]) for line in lines if line.startswith("allowed_batch_sizes")]
    assert given == allowed
    assert f"max_batch_size {{ value: {size} }}" in lines
    assert "batch_timeout_micros { value: 750 }" in lines


def test_compose_file_mounts_what_the_flags_name(models, tmp_path):
    models["birds"] = models["birds"].rename(tmp_path / 'a $HOME: "b" é')
    paths = write_serving_config(models, tmp_path, rest_port=9001, grpc_port=9000)
    service = yaml.safe_load(paths[2].read_text())["services"]["serving"]
    assert service["image"] == "tensorflow/serving:2.20.0"
    assert service["ports"] == ["9001:8501", "9000:8500"]
    mounts = {v["target"]: v["source"].replace("$$", "$") for v in service["volumes"]}
    assert all(v["read_only"] is True and v["type"] == "bind" for v in service["volumes"])
    assert mounts == {
        "/config": ".",
        "/models/birds": str(models["birds"]),
        "/models/fish.v2": models["fish.v2"],
    }
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags["model_config_file"] == "/config/models.config"
    assert flags["batching_parameters_file"] == "/config/batching.config"
    assert flags["enable_batching"] == "true"
    assert flags["allow_version_labels_for_unavailable_models"] == "true"
    assert int(flags["model_config_file_poll_wait_seconds"]) > 0


def test_health_check_asks_the_server_for_each_model(models, tmp_path):
    paths = write_serving_config(models, tmp_path)
    test = yaml.safe_load(paths[2].read_text())["services"]["serving"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "bash", "-c"]
    assert test[3] == serving_config.health_command(models)
    states = {"birds": "AVAILABLE", "fish": "AVAILABLE"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_states, args=(listener, states), daemon=True).start()
        command = serving_config.health_command(states, listener.getsockname()[1])
        assert subprocess.run(["bash", "-c", command]).returncode == 0
        for state in ("LOADING", "UNAVAILABLE"):
            states["fish"] = state
            assert subprocess.run(["bash", "-c", command]).returncode != 0
    assert subprocess.run(["bash", "-c", command], stderr=subprocess.DEVNULL).returncode != 0


def answer_states(listener, states):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            name = connection.recv(1000).split()[1].decode().rpartition("/")[2]
            body = json.dumps({"model_version_status": [{"state": states[name]}]}, indent=1)
            connection.sendall(f"HTTP/1.0 200 OK\r\n\r\n{body}".encode())


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(models, tmp_path):
    (tmp_path / "out" / "docker-compose.yml").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"docker-compose\.yml"):
        write_serving_config(models, tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["docker-compose.yml"]


def test_existing_files_are_refused_and_left_alone(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "batching.config").write_text("mine")
    with pytest.raises(FileExistsError, match=r"batching.config already.*overwrite=True"):
        write_serving_config(models, out)
    assert [path.name for path in out.iterdir()] == ["batching.config"]
    assert (out / "batching.config").read_text() == "mine"
    write_serving_config(models, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted(serving_config.FILES)
    assert "max_batch_size" in (out / "batching.config").read_text()


def test_a_write_that_fails_changes_nothing(models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    paths = write_serving_config(models, out)
    before = [path.read_text() for path in paths]

    write = type(out).write_text

    def fail(path, text, **kwargs):
        if "compose" in path.name:
            raise OSError("disk full")
        return write(path, text, **kwargs)

    monkeypatch.setattr(type(out), "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_serving_config(models, out, max_batch_size=4, overwrite=True)
    assert [path.read_text() for path in paths] == before
    assert len(os.listdir(out)) == 3


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"models": {}}, ValueError, "dict of names to folders.*{}"),
        ({"models": {"a/b": "birds"}}, ValueError, "letters, digits.*'a/b'"),
        ({"models": {"..": "birds"}}, ValueError, r"letters, digits.*'\.\.'"),
        ({"models": {"x": "nowhere"}}, FileNotFoundError, "'x' does not exist.*nowhere"),
        ({"models": {"x": "empty"}}, ValueError, r"1/saved_model.pb.*\['1'\]"),
        ({"versions": {"cats": [1]}}, ValueError, r"models of \['birds'.*\['cats'\]"),
        ({"versions": {"birds": [1, 3]}}, FileNotFoundError, r"\[1, 2, 10\].*\[3\]"),
        ({"versions": {"birds": []}}, ValueError, r"integers.*\[\]"),
        ({"versions": {"birds": 2}}, ValueError, "list of integers.*2"),
        ({"labels": {"birds": "stable"}}, ValueError, "dict of label.*'stable'"),
        ({"labels": {"birds": {"old": 2}}}, ValueError, r"'old'.*\[10\].*versions.*2"),
        ({"labels": {"birds": {'a"b': 10}}}, ValueError, 'label.*a"b'),
        ({"rest_port": 0}, ValueError, r"rest_port.*\[1, 65535\].*0"),
        ({"rest_port": 8500}, ValueError, "must differ.*8500"),
        ({"max_batch_size": True}, ValueError, "max_batch_size.*integer.*True"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(models, tmp_path, kwargs, error, message):
    if "models" in kwargs:
        kwargs["models"] = {k: tmp_path / v for k, v in kwargs["models"].items()}
    with pytest.raises(error, match=message):
        write_serving_config(**{"models": models, "directory": tmp_path / "out", **kwargs})
    assert not (tmp_path / "out").exists()


def test_a_new_version_can_be_labelled(models, tmp_path):
    paths = write_serving_config(models, tmp_path, labels={"birds": {"stable": 10}})
    assert dict(model_configs(paths)[0].version_labels) == {"stable": 10}
    shutil.rmtree(models["birds"] / "10")
    with pytest.raises(ValueError, match=r"'stable'.*\[2\].*10"):
        write_serving_config(models, tmp_path, labels={"birds": {"stable": 10}}, overwrite=True)
