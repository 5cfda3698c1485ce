"""Trained networks that others bring: what a file or folder says of the network in it."""

import dataclasses
import pathlib

import dgnet_keras as dg
from dgnet_keras.commands.paths import existing
from dgnet_keras.convert import is_static
from dgnet_keras.layers.wiring import ROUTED
from dgnet_keras.paths import named, usable_path
from dgnet_keras.timm import HUB_FILE, hub_file, is_hub_name, timm_config
from dgnet_keras.variants import family_of
from dgnet_keras.weight_files import backbone_config, saved_config
from train.classification.model import preprocessing_of
from train.weights import BEST_WEIGHTS
from train.workdir import read_json

TOLD = ("model", "model_overrides", "input_shape", "mean", "std", "crop", "init")


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained network.

    Attributes:
        weights: file or folder that `train.weights.load_initial_weights` takes.
        model: its variant.
        model_overrides: fields of the variant's Spec that it has otherwise.
        wiring: `"chain"` of a static network; None of another that does not say which.
        class_names: of its classes, in order, or None where nothing tells.
        settings: dict of a recipe's keys that it tells: `input_shape`, `mean`, `std`, `crop`.
    """

    weights: str
    model: str
    model_overrides: dict = dataclasses.field(default_factory=dict)
    wiring: str | None = "chain"
    class_names: tuple[str, ...] | None = None
    settings: dict = dataclasses.field(default_factory=dict)


def find_source(source, model=None):
    """What a trained network says of itself.

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
        ValueError: if the network is none of this package, does not say which variant it is, or
            is another than `model`.
    """
    name = str(source)
    if is_hub_name(name):
        family_of(model or name.removeprefix("timm/").partition(".")[0])  # before it is asked for
        hub_file(name, "config.json")  # which then lies beside the weights
        path = pathlib.Path(hub_file(name, HUB_FILE))
    else:
        path = named(usable_path("SOURCE", name))
    existing(path)
    if path.is_dir():
        found = _of_run(path)
    elif path.suffix == ".keras":
        found = _of_keras(path)
    elif path.suffix == ".safetensors":
        found = _of_timm(path, model)
    else:
        wiring = "chain" if is_static(path) else None
        found = Source(str(path), _named(model, path), wiring=wiring)
    if model not in (None, found.model):
        raise ValueError(f"{source} holds a {found.model}. Received: the variant {model}")
    return found


def check_static(found, source):
    """Raises `ValueError` unless the network found at `source` is static."""
    if found.wiring != "chain":
        raise ValueError(
            "A static network is needed, of wiring 'chain'. "
            f"Received: {source}, of wiring {found.wiring or 'another'!r}"
        )


def check_teacher(recipe, class_names):
    """Raises `ValueError` if `distill_from` says that it is of other classes or other pixels."""
    found = None if recipe.distill_from is None else _as_far_as_it_says(recipe.distill_from)
    if found is None:
        return
    pixels = {key: found.settings.get(key) for key in ("mean", "std")}
    own, other = (
        (preprocessing.mean, preprocessing.std)
        for preprocessing in map(preprocessing_of, (recipe, dataclasses.replace(recipe, **pixels)))
    )
    if own != other:
        raise ValueError(
            "distill_from must be a network of images of the same mean and standard deviation, "
            f"{own}. Received: {recipe.distill_from}, of {other}"
        )
    if _are_named(found.class_names, class_names) and found.class_names != tuple(class_names):
        raise ValueError(
            "distill_from must be a network of the same classes in the same order, "
            f"{_shown(class_names)}. Received: {recipe.distill_from}, of "
            f"{_shown(found.class_names)}"
        )


def other_classes(init_from, class_names):
    """List of a sentence that the classifier at `init_from` is of other classes, or empty.

    Where their number is another, the classifier is not loaded, which is said elsewhere.
    """
    found = None if init_from is None else _as_far_as_it_says(init_from)
    names = found and found.class_names
    if not _are_named(names, class_names) or names == tuple(class_names):
        return []
    if len(names) != len(class_names):
        return []
    return [
        f"{init_from} was trained on other classes, or in another order: {_shown(names)}. Here "
        f"they are {_shown(class_names)}. Its classifier starts from theirs."
    ]


def _are_named(*classes):
    """Whether all have names of classes, other than their numbers, which stand for none."""
    return all(names and tuple(names) != tuple(map(str, range(len(names)))) for names in classes)


def _as_far_as_it_says(source):
    """The `Source` of a run, what lies in one, or a `.keras` file; None where nothing tells."""
    path = named(source)
    if path.with_name(f"{path.name}.index").exists():  # of a checkpoint
        path = path.parent.parent
    elif path.name == BEST_WEIGHTS:
        path = path.parent
    try:
        if (path / "config.json").exists():
            return _of_run(path)
        return _of_keras(path) if path.suffix == ".keras" and path.exists() else None
    except ValueError:  # loading says best what is wrong
        return None


def _shown(names):
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def settled(recipe, overrides, init_from, workdir):
    """The recipe with what the network that it starts from says of itself, where none was set.

    That is the variant, the size of the images and their mean and standard deviation; and for a
    graph that starts from a static network `init="static"`.

    Args:
        recipe: a `Recipe`.
        overrides: `key=value` strings that were set.
        init_from: see `find_source`, or a checkpoint of a run.
        workdir: folder of the run. A run that goes on does not need the network that it started
            from any more: where that is gone, what it said stands in `config.json`.

    Returns:
        Tuple of the recipe and a dict of what was changed.

    Raises:
        ValueError: as `find_source`; also if a variant was set that is not the network's.
    """
    said = {item.partition("=")[0].partition(".")[0] for item in overrides}
    tells = _tells(recipe, "model" in said, init_from, pathlib.Path(workdir) / "config.json")
    changes = {k: v for k, v in tells.items() if k not in said and v != getattr(recipe, k)}
    return dataclasses.replace(recipe, **changes), changes


def _tells(recipe, is_set, init_from, config_file):
    """Dict of a recipe's keys to what the network at `init_from` says of them."""
    path = named(init_from)
    if path.with_name(path.name + ".index").exists():
        path = path.parent.parent  # the run of a checkpoint
        if not (path / "config.json").exists():
            return {}
    before = read_json(config_file)
    if before is not None and not path.exists():
        return {key: _tupled(before[key]) for key in TOLD if key in before}
    is_folder_alone = path.is_dir() and not (path / "config.json").exists()
    if is_folder_alone or not (path.exists() or is_hub_name(str(init_from))):
        return {}  # loading says best what is wrong
    is_named = is_set or path.name.endswith((".weights.h5", ".npz"))
    found = find_source(path if path.exists() else init_from, recipe.model if is_named else None)
    tells = {"model": found.model, "model_overrides": found.model_overrides, **found.settings}
    if is_named:
        del tells["model_overrides"]
    if recipe.wiring in ROUTED and found.wiring == "chain":
        tells["init"] = "static"
    return tells


def _named(model, path):
    if model is None:
        raise ValueError(
            f"{path} does not say which variant it is, such as resnet50 or resnet20_cifar. "
            "`python -m dgnet_keras list` shows all, and `adapt` takes one with --model"
        )
    family_of(model)
    return model


def _of_run(folder):
    config = read_json(folder / "config.json")
    if config is None or "model" not in config:
        raise ValueError(f"{folder} is not the folder of a run: it has no config.json of one")
    names = config.get("data", {}).get("class_names")
    return Source(
        str(folder),
        config["model"],
        _tupled(config["model_overrides"]),
        config["wiring"],
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
    variant = found["name"]
    usual = dataclasses.asdict(family_of(variant).variants[variant])
    overrides = {k: _tupled(v) for k, v in found["spec"].items() if _tupled(v) != usual[k]}
    pixels = found.get("preprocessing", {})
    settings = {key: _tupled(pixels[key]) for key in ("mean", "std", "crop") if key in pixels}
    settings["input_shape"] = _shape(found, pixels)
    return Source(str(path), variant, overrides, found["wiring"], settings=settings)


def _shape(found, pixels):
    """Of the images: those that the model was made for, or that its preprocessing gives."""
    height, width, channels = found["input_shape"]
    if None in (height, width):
        height, width = pixels["image_size"]
    return height, width, channels


def _of_timm(path, model):
    """Of timm's weights: what their `config.json` or name says."""
    config = timm_config(path)
    stated = config["architecture"]
    variant = stated if stated in dg.list_variants() else _named(model, path)
    pixels = config.get("pretrained_cfg", {})
    settings = {key: tuple(pixels[key]) for key in ("mean", "std") if key in pixels}
    if "crop_pct" in pixels:
        settings["crop"] = float(pixels["crop_pct"])
    if "input_size" in pixels:
        channels, height, width = pixels["input_size"]
        settings["input_shape"] = height, width, channels
    return Source(str(path), variant, settings=settings)


def _tupled(value):
    """JSON's lists as tuples, those in a dict too."""
    if isinstance(value, dict):
        return {key: _tupled(entry) for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value
