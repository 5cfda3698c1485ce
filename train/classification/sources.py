"""Trained static networks that others bring: what a file or folder says of the network in it."""

import dataclasses
import json
import pathlib

import dgnet_keras as dg
from dgnet_keras.classifier import family_of
from dgnet_keras.paths import usable_path
from dgnet_keras.timm import hub_file, is_hub_name
from dgnet_keras.weights import backbone_config, saved_config
from train.workdir import read_json

TIMM_FILE = "model.safetensors"  # of a hub repository, whose name says more


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained static network.

    Attributes:
        weights: file or folder that `train.weights.load_initial_weights` takes.
        model: its variant.
        model_overrides: fields of the variant's Spec that it has otherwise.
        class_names: of its classes, in order, or None where nothing tells.
        settings: dict of a recipe's keys that it tells: `input_shape`, `mean`, `std`, `crop`.
    """

    weights: str
    model: str
    model_overrides: dict = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    settings: dict = dataclasses.field(default_factory=dict)


def find_source(source, model=None):
    """What a trained static network says of itself.

    Args:
        source: folder of a run; a `.keras` or `.weights.h5` file of this package; timm's
            `.safetensors` file or hub name (`timm/resnet50.a1_in1k`), whose `config.json` is read
            where it lies beside; an `.npz` of CIFAR ResNets.
        model: its variant, where it does not say so itself.

    Returns:
        A `Source`.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ImportError, ConnectionError: for a hub name that cannot be had.
        ValueError: if the network is not static, is none of this package, or does not say which
            variant it is.
    """
    name = str(source)
    if is_hub_name(name):
        hub_file(name, "config.json")  # which then lies beside the weights
        return _of_timm(hub_file(name, TIMM_FILE), name.partition("/")[2], model)
    path = pathlib.Path(usable_path("SOURCE", name))
    if not path.exists():
        raise FileNotFoundError(
            f"No trained network at {path}. Expected the folder of a run, a .keras, .weights.h5, "
            ".safetensors or .npz file, or a hub name such as timm/resnet50.a1_in1k"
        )
    if path.is_dir():
        found = _of_run(path)
    elif path.suffix == ".keras":
        found = _of_keras(path)
    elif path.suffix == ".safetensors":
        named = path.parent.name if path.name == TIMM_FILE else path.name
        return _of_timm(path, named, model)
    else:
        found = Source(str(path), _named(model, path))
    if model not in (None, found.model):
        raise ValueError(f"{path} holds a {found.model}. Received: --model {model}")
    return found


def _named(model, path):
    if model is None:
        raise ValueError(
            f"{path} does not say which variant it is: give it with --model, such as --model "
            "resnet50 (`python -m dgnet_keras list` shows all)"
        )
    family_of(model)
    return model


def _check_static(wiring, path):
    if wiring != "chain":
        raise ValueError(
            f"A static network is needed, of wiring 'chain'. Received: {path}, of wiring {wiring!r}"
        )


def _of_run(folder):
    config = read_json(folder / "config.json")
    if config is None:
        raise ValueError(f"{folder} is not the folder of a run: it has no config.json")
    _check_static(config["wiring"], folder)
    names = config["data"].get("class_names")
    return Source(
        str(folder),
        config["model"],
        config["model_overrides"],
        None if names is None else tuple(names),
        {key: _tupled(config.get(key)) for key in ("input_shape", "mean", "std", "crop")},
    )


def _of_keras(path):
    found = backbone_config(saved_config(path))
    if found is None or found.get("name") not in dg.list_variants():
        raise ValueError(
            f"{path} must hold a model that `dgnet_keras.create` made. Received: another Keras "
            "model. Weights of the same architecture can be moved into one of the package's"
        )
    _check_static(found["wiring"], path)
    variant = found["name"]
    usual = dataclasses.asdict(family_of(variant).variants[variant])
    overrides = {k: _tupled(v) for k, v in found["spec"].items() if _tupled(v) != usual[k]}
    pixels = found.get("preprocessing", {})
    settings = {key: _tupled(pixels[key]) for key in ("mean", "std", "crop") if key in pixels}
    return Source(
        str(path), variant, overrides, settings={"input_shape": _shape(found, pixels), **settings}
    )


def _shape(found, pixels):
    """Of the images: those that the model was made for, or that its preprocessing gives."""
    height, width, channels = found["input_shape"]
    if None in (height, width):
        height, width = pixels["image_size"]
    return height, width, channels


def _of_timm(path, named, model):
    """Of timm's weights: the variant by the name, `resnet50.a1_in1k`, the rest by config.json."""
    path = pathlib.Path(path)
    try:
        config = read_json(path.with_name("config.json"), {})
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.with_name('config.json')} is not JSON: {error}") from error
    stated = config.get("architecture") or named.partition(".")[0]
    variant = model or (stated if stated in dg.list_variants() else None)
    pixels = config.get("pretrained_cfg", {})
    settings = {key: tuple(pixels[key]) for key in ("mean", "std") if key in pixels}
    if "crop_pct" in pixels:
        settings["crop"] = float(pixels["crop_pct"])
    if "input_size" in pixels:
        channels, height, width = pixels["input_size"]
        settings["input_shape"] = height, width, channels
    return Source(str(path), _named(variant, path), settings=settings)


def _tupled(value):
    return tuple(value) if isinstance(value, list) else value
