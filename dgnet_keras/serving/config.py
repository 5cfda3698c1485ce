"""Files that make TensorFlow Serving serve exported models: `write_serving_config`.

Works without `tensorflow-serving-api`, whose protos the base installation does not have.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

FILES = ("models.config", "batching.config", "docker-compose.yml")
POLL_SECONDS = 5  # between the server's looks at models.config

BATCHING = """\
# Requests are put together up to `max_batch_size` images; a request of more is refused. Those put
# together must have images of one size: `predict_jpeg` takes files of any, but raw images of sizes
# that differ are refused when they meet.
max_batch_size {{ value: {size} }}
batch_timeout_micros {{ value: {timeout} }}
max_enqueued_batches {{ value: {queue} }}
num_batch_threads {{ value: {threads} }}
{allowed}
"""

COMPOSE = """\
# docker compose up --detach
# TensorFlow Serving asks nobody for a password: let the ports be reached only by who may ask.
"""


def write_serving_config(
    models: Mapping[str, str | os.PathLike[str]],
    directory: str | os.PathLike[str],
    *,
    rest_port: int = 8501,
    grpc_port: int = 8500,
    max_batch_size: int = 32,
    batch_timeout_micros: int = 2000,
    versions: Mapping[str, Sequence[int]] | None = None,
    labels: Mapping[str, Mapping[str, int]] | None = None,
    image: str = "tensorflow/serving:2.20.0",
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes what `docker compose up` needs to serve models with TensorFlow Serving.

    `models.config` (which models, versions and labels; the server takes a change of it within
    5 s, without a restart), `batching.config` and `docker-compose.yml`.

    Args:
        models: dict of model name to the folder of its versions (see `export_saved_model`).
        directory: where the files are written; made if it does not exist.
        rest_port: port of this machine for REST.
        grpc_port: port of this machine for gRPC.
        max_batch_size: images that are computed together, and the most in one request.
        batch_timeout_micros: microseconds that a request waits for others to join it.
        versions: dict of model name to the list of versions to serve; a model that is not in it
            serves its newest, and takes a newer one as soon as it is there.
        labels: dict of model name to a dict of label to version. Such a model needs `versions`, if
            a label is not the newest version's.
        image: Docker image of TensorFlow Serving.
        overwrite: whether existing files are replaced.

    Returns:
        List of the three paths.

    Raises:
        FileExistsError: if a file exists and `overwrite` is False; nothing is written.
        IsADirectoryError: if a folder is in a file's place; nothing is written.
        FileNotFoundError: if a folder, or a version asked for, does not exist.
        ValueError: if another argument does not fit.
    """
    versions, labels = versions or {}, labels or {}
    folders = _check_models(models)
    _check_numbers(rest_port, grpc_port, max_batch_size, batch_timeout_micros)
    _check_versions(folders, versions, labels)
    target = pathlib.Path(directory)
    paths = [target / name for name in FILES]
    existing = [path.name for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{target} has {', '.join(existing)} already. Give overwrite=True (on the command line "
            "--overwrite) to replace them."
        )
    if folders_there := [path.name for path in paths if path.is_dir()]:
        raise IsADirectoryError(f"{target} has folders called {', '.join(folders_there)}.")
    texts = [
        "".join(_model_text(name, versions.get(name), labels.get(name, {})) for name in folders),
        _batching_text(max_batch_size, batch_timeout_micros),
        _compose_text(folders, rest_port, grpc_port, image),
    ]
    texts[0] = f"model_config_list {{\n{texts[0]}}}\n"
    _write_all(paths, texts)
    return paths


def found_versions(folder: pathlib.Path) -> list[int]:
    """Versions in a model's folder that hold a SavedModel, ascending.

    Args:
        folder: `pathlib.Path`; versions are its sub-folders whose names are numbers.
    """
    names = [path.parent.name for path in folder.glob("*/saved_model.pb")]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _check_models(models):
    """The folders by name, absolute."""
    if not isinstance(models, dict) or not models:
        raise ValueError(f"`models` must be a dict of names to folders. Received: {models!r}")
    folders = {}
    for name, folder in models.items():
        # Names become parts of paths and URLs; "." and ".." would be other folders.
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
            raise ValueError(
                "A model's name must be of letters, digits, '_', '-' and '.', which is not first. "
                f"Received: {name!r}"
            )
        folders[name] = pathlib.Path(folder).resolve()
        if not folders[name].is_dir():
            raise FileNotFoundError(f"Folder of model {name!r} does not exist: {folder}")
        if not found_versions(folders[name]):
            received = sorted(path.name for path in folders[name].iterdir())[:10]
            raise ValueError(
                f"Folder of model {name!r} must hold a version, such as "
                f"{folder}/1/saved_model.pb. Received: {received}"
            )
    return folders


def _check_numbers(rest_port, grpc_port, max_batch_size, batch_timeout_micros):
    ranges = {
        "rest_port": (rest_port, 1, 65535),
        "grpc_port": (grpc_port, 1, 65535),
        "max_batch_size": (max_batch_size, 1, 1 << 20),
        "batch_timeout_micros": (batch_timeout_micros, 0, 60_000_000),
    }
    for name, (value, least, most) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(
                f"`{name}` must be an integer in [{least}, {most}]. Received: {value!r}"
            )
    if rest_port == grpc_port:
        raise ValueError(f"`rest_port` and `grpc_port` must differ. Received: {rest_port}")


def _check_versions(folders, versions, labels):
    for argument, given in (("versions", versions), ("labels", labels)):
        if unknown := sorted(set(given) - set(folders)):
            raise ValueError(
                f"`{argument}` must name models of {list(folders)}. Received: {unknown}"
            )
    for name, folder in folders.items():
        found = found_versions(folder)
        wanted = versions.get(name, found[-1:])
        is_list = isinstance(wanted, (list, tuple)) and len(wanted) > 0
        if not is_list or not all(type(version) is int for version in wanted):
            raise ValueError(
                f"`versions` of {name!r} must be a list of integers. Received: {wanted!r}"
            )
        if missing := sorted(set(wanted) - set(found)):
            raise FileNotFoundError(
                f"Model {name!r} has the versions {found} in {folder}. Received: {missing}"
            )
        _check_labels(name, labels.get(name, {}), wanted)


def _check_labels(name, labels, wanted):
    if not isinstance(labels, dict):
        raise ValueError(
            f"`labels` of {name!r} must be a dict of label to version. Received: {labels!r}"
        )
    for label, version in labels.items():
        if not isinstance(label, str) or not re.fullmatch("[A-Za-z0-9_.-]+", label):
            raise ValueError(
                f"A label must be of letters, digits, '_', '-' and '.'. Received: {label!r}"
            )
        if version not in wanted:
            raise ValueError(
                f"Label {label!r} of model {name!r} must be of a version that is served, "
                f"{list(wanted)}; `versions` says which. Received: {version!r}"
            )


def _model_text(name, versions, labels):
    """The part of a model in `models.config`, protobuf's text format."""
    lines = [
        f'name: "{name}"',
        f'base_path: "/models/{name}"',
        'model_platform: "tensorflow"',
    ]
    if versions:
        numbers = " ".join(f"versions: {version}" for version in sorted(set(versions)))
        lines.append(f"model_version_policy {{ specific {{ {numbers} }} }}")
    for label, version in labels.items():
        lines.append(f'version_labels {{ key: "{label}" value: {version} }}')
    return "  config {\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _batching_text(max_batch_size, batch_timeout_micros):
    """`batching.config`, protobuf's text format."""
    sizes = [1 << k for k in range(max_batch_size.bit_length()) if 1 << k < max_batch_size]
    threads = os.cpu_count() or 1
    return BATCHING.format(
        size=max_batch_size,
        timeout=batch_timeout_micros,
        queue=100,
        threads=threads,
        allowed="\n".join(f"allowed_batch_sizes: {size}" for size in [*sizes, max_batch_size]),
    )


def _compose_text(folders, rest_port, grpc_port, image):
    """`docker-compose.yml`."""
    # The folder and not the file: one that is replaced would stay the old one in the container.
    mounts = {"/config": ".", **{f"/models/{name}": str(path) for name, path in folders.items()}}
    service = {
        "image": image,
        "restart": "unless-stopped",
        "ports": [f"{rest_port}:8501", f"{grpc_port}:8500"],
        "command": [
            "--model_config_file=/config/models.config",
            f"--model_config_file_poll_wait_seconds={POLL_SECONDS}",
            "--enable_batching=true",
            "--batching_parameters_file=/config/batching.config",
            "--allow_version_labels_for_unavailable_models=true",
        ],
        "volumes": [
            {"type": "bind", "source": source, "target": target, "read_only": True}
            for target, source in mounts.items()
        ],
        "healthcheck": {
            "test": ["CMD", "bash", "-c", health_command(folders)],
            **{"interval": "10s", "timeout": "5s", "start_period": "60s"},
        },
    }
    text = yaml.safe_dump(
        {"services": {"serving": service}}, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return COMPOSE + text.replace("$", "$$")  # Compose would replace names after a `$`


def health_command(models: Iterable[str], port: int = 8501) -> str:
    """Command for bash that succeeds if each model has a version to serve.

    The image has bash, but neither curl nor wget.

    Args:
        models: their names.
        port: of REST, on the machine where it runs.
    """
    asks = [
        f"exec 3<>/dev/tcp/127.0.0.1/{port} && "
        f"printf 'GET /v1/models/{name} HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '\"AVAILABLE\"' <&3"
        for name in models
    ]
    return " && ".join(asks)


def _write_all(paths, texts):
    """Writes all files beside their places first, then puts each there at once."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    scratches = [path.with_name(f".{path.name}.{os.getpid()}") for path in paths]
    try:
        for scratch, text in zip(scratches, texts, strict=True):
            scratch.write_text(text, encoding="utf-8")
        for scratch, path in zip(scratches, paths, strict=True):
            os.replace(scratch, path)
    finally:
        for scratch in scratches:
            scratch.unlink(missing_ok=True)
