"""Recipes: frozen dataclasses that hold everything a run depends on, but where its data lies."""

import dataclasses
import json
import math

from dgnet_keras.backbones.base import closest
from dgnet_keras.layers.gate import check_choice

FORMAT = 1
DTYPES = ("float32", "mixed_bfloat16")
OPTIONAL = {"edge_scale": float, "max_nodes": int}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run trains, on what, and how.

    Attributes:
        model: a variant of `dgnet_keras.list_variants()`.
        dataset: `"digits"` (embedded in scikit-learn) or `"folder"` (class folders of images).
        input_shape: (height, width, channels) in pixels.
        epochs: passes over the training images.
        batch_size: global: images a step over all replicas.
        seed: of initial weights, order of images and augmentation.
        deterministic: whether the run gives the same weights bit for bit when repeated.
        wiring: see `dgnet_keras.create`, as for all down to `model_overrides`.
        threshold: see `dgnet_keras.create`.
        edge_scale: see `dgnet_keras.create`.
        init: see `dgnet_keras.create`.
        gate: see `dgnet_keras.create`.
        learn_threshold: see `dgnet_keras.create`.
        max_nodes: see `dgnet_keras.create`.
        model_overrides: fields of the family's Spec.
        dtype: Keras dtype policy, `"float32"` or `"mixed_bfloat16"`.
        learning_rate: peak, for the whole batch.
        warmup_epochs: linear rise from 0, before the cosine decay to 0.
        momentum: Nesterov momentum of SGD.
        weight_decay: L2 on kernels; not on normalisation, biases or routers' biases.
        label_smoothing: in [0, 1).
        random_flip: whether training images are mirrored at random.
        random_shift: training images are shifted by up to so many pixels.
        crop: of the evaluation's centre crop, see `Preprocessing`.
        steps_per_loop: steps between two updates of the progress bar.
        checkpoint_epochs: epochs between two checkpoints.
        checkpoints_kept: how many of the newest checkpoints are kept.
    """

    model: str
    dataset: str
    input_shape: tuple[int, int, int]
    epochs: int
    batch_size: int = 128
    seed: int = 0
    deterministic: bool = False
    wiring: str = "dynamic"
    threshold: float = 0.1
    edge_scale: float | None = None
    init: str = "open"
    gate: str = "straight_through"
    learn_threshold: bool = False
    max_nodes: int | None = None
    model_overrides: dict = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    learning_rate: float = 0.1
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    random_flip: bool = False
    random_shift: int = 0
    crop: float = 1.0
    steps_per_loop: int = 10
    checkpoint_epochs: int = 1
    checkpoints_kept: int = 3

    def __post_init__(self):
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        check_choice("dtype", self.dtype, DTYPES)
        for name in ("epochs", "batch_size", "steps_per_loop", "checkpoint_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive. Received: {getattr(self, name)}")
        for name, low, high in (
            ("learning_rate", 0, math.inf),
            ("warmup_epochs", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("random_shift", 0, math.inf),
            ("momentum", 0, 1),
            ("label_smoothing", 0, 1),
        ):
            if not low <= getattr(self, name) < high:
                raise ValueError(
                    f"`{name}` must be in [{low}, {high}). Received: {getattr(self, name)}"
                )

    def to_json(self):
        """The recipe as indented JSON, with a format number."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"


RECIPES = {
    # The main job of `make demo`; see README for its measured result.
    "digits_resnet20": Recipe(
        model="resnet20_cifar",
        dataset="digits",
        input_shape=(16, 16, 3),
        epochs=15,
        batch_size=64,
        learning_rate=0.05,
        random_shift=1,
    ),
    # python -m train.imagenet --config cifar10_resnet20 --data-dir DIR --workdir runs/cifar10
    "cifar10_resnet20": Recipe(
        model="resnet20_cifar",
        dataset="folder",
        input_shape=(32, 32, 3),
        epochs=10,
        random_flip=True,
        random_shift=4,
    ),
}


def get_recipe(name, overrides=()):
    """A recipe by name, with `key=value` strings applied.

    Args:
        name: a key of `RECIPES`.
        overrides: strings `"key=value"`; the value is JSON, or else a plain string.
            `model_overrides.depths=[2,2,2]` sets one entry of a dict.

    Raises:
        ValueError: for an unknown recipe or key (names the closest), or a value of a wrong kind.
    """
    if name not in RECIPES:
        raise ValueError(
            f"Unknown recipe {name!r}.{closest(name, RECIPES)} Recipes: {', '.join(RECIPES)}"
        )
    recipe = RECIPES[name]
    for item in overrides:
        recipe = _apply(recipe, item)
    return recipe


def _apply(recipe, item):
    key, separator, text = item.partition("=")
    if not separator:
        raise ValueError(f"An override is written key=value. Received: {item!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    key, _, entry = key.partition(".")
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    if key not in fields:
        raise ValueError(
            f"Unknown key {key!r}.{closest(key, fields)} Keys of a recipe: {', '.join(fields)}"
        )
    if entry:
        if not isinstance(getattr(recipe, key), dict):
            raise ValueError(f"`{key}` has no entries to set. Received: {item!r}")
        value = {**getattr(recipe, key), entry: value}
    return dataclasses.replace(recipe, **{key: _checked(key, value, getattr(recipe, key))})


def _checked(key, value, default):
    """The value as the type that the key has; `ValueError` if it is of another."""
    if value is None and key in OPTIONAL:
        return None
    kind = OPTIONAL.get(key, list if isinstance(default, tuple) else type(default))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(
            f"`{key}` must be of type {kind.__name__}, as in {default!r}. Received: {value!r}"
        )
    return value
