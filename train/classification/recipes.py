"""Recipes: frozen dataclasses that hold everything a run depends on, but where its data lies."""

import dataclasses
import json
import math

from dgnet_keras.checks import check_choice, closest

FORMAT = 3
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")
OPTIMIZERS = ("sgd", "adamw")
OPTIONAL = {"edge_scale": float, "max_nodes": int, "num_classes": int, "clip_norm": float}
KERAS_CV = ("rand_augment_layers", "mixup_alpha", "cutmix_alpha")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run trains, on what, and how.

    Attributes:
        model: a variant of `dgnet_keras.list_variants()`.
        dataset: `"digits"` (embedded in scikit-learn), `"folder"` (class folders of images),
            `"tfrecord"` (ImageNet's usual shards) or `"tfds:NAME"` (TensorFlow Datasets).
        input_shape: (height, width, channels) in pixels.
        epochs: passes over the training images.
        batch_size: global: images an update, over all replicas and accumulated parts.
        seed: of initial weights, order of images and augmentation.
        deterministic: whether the run gives the same weights bit for bit when repeated.
        num_classes: of TFRecords without a `labels.txt`; None means as many as the data has.
        first_label: number of the first class in TFRecords; 1 in ImageNet's usual ones.
        validation: share of the training images that is held out, alike for every seed, and
            evaluated in place of the test images: to choose settings with. 0 is off.
        wiring: see `dgnet_keras.create`, as for all down to `model_overrides`.
        threshold: see `dgnet_keras.create`.
        edge_scale: see `dgnet_keras.create`.
        init: see `dgnet_keras.create`.
        gate: see `dgnet_keras.create`.
        learn_threshold: see `dgnet_keras.create`.
        max_nodes: see `dgnet_keras.create`.
        model_overrides: fields of the family's Spec.
        dtype: Keras dtype policy; `"mixed_float16"` scales the loss dynamically.
        optimizer: `"sgd"` (with momentum) or `"adamw"`.
        learning_rate: peak, for the whole batch.
        router_lr_multiplier: of the learning rate of routers, edge logits and thresholds. At 1
            routers can run ahead of the blocks, and close the edges of a block that has not
            learned yet and then never does (docs/results.md).
        warmup_epochs: linear rise from 0, before the cosine decay to 0.
        momentum: Nesterov momentum of SGD.
        weight_decay: of kernels, routers' included; not of normalisation, biases, edge logits or
            thresholds. L2 in the gradient for SGD, decoupled for AdamW.
        clip_norm: global norm that gradients are clipped to; None does not clip.
        ema_momentum: of the moving average of weights that is evaluated and saved; 0 is off.
        accumulation_steps: parts that a replica takes its share of the batch in, one by one.
        synchronized_norm: whether batch normalisation takes its statistics over all replicas.
        freeze_backbone_epochs: first epochs in which nodes and stem keep their weights and
            statistics (the classifier and the routers learn).
        freeze_routers_epochs: first epochs in which routers, edge logits and thresholds do.
        label_smoothing: in [0, 1).
        random_flip: whether training images are mirrored at random.
        random_shift: training images are shifted by up to so many pixels.
        random_resized_crop: the least share of the image's area in a random crop of random aspect
            ratio, 0.08 as a rule on ImageNet; 0 is off.
        random_erasing: probability that a rectangle of the image becomes noise.
        rand_augment_layers: operations of keras-cv's RandAugment; 0 is off.
        rand_augment_magnitude: of RandAugment, in [0, 1].
        mixup_alpha: of keras-cv's MixUp; 0 is off.
        cutmix_alpha: of keras-cv's CutMix; 0 is off. With both, each batch takes one at random.
        crop: of the evaluation's centre crop, see `Preprocessing`.
        cache: whether the images' bytes are kept in memory, for data that fits in it.
        shuffle_buffer: records that are read and shuffled at a time (`"tfrecord"`, `"tfds:NAME"`).
        xla: whether accelerators compile with XLA; a CPU never does (3 to 4 times slower).
        evaluation_epochs: epochs between two evaluations; the last epoch is always evaluated.
        steps_per_loop: steps between two updates of the progress bar and TensorBoard.
        checkpoint_epochs: epochs between two checkpoints.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 is none.
        checkpoints_kept: how many of the newest checkpoints are kept.
    """

    model: str
    dataset: str
    input_shape: tuple[int, int, int]
    epochs: int
    batch_size: int = 128
    seed: int = 0
    deterministic: bool = False
    num_classes: int | None = None
    first_label: int = 1
    validation: float = 0.0
    wiring: str = "dynamic"
    threshold: float = 0.1
    edge_scale: float | None = None
    init: str = "open"
    gate: str = "straight_through"
    learn_threshold: bool = False
    max_nodes: int | None = None
    model_overrides: dict = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    router_lr_multiplier: float = 0.1
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    ema_momentum: float = 0.0
    accumulation_steps: int = 1
    synchronized_norm: bool = False
    freeze_backbone_epochs: int = 0
    freeze_routers_epochs: int = 0
    label_smoothing: float = 0.0
    random_flip: bool = False
    random_shift: int = 0
    random_resized_crop: float = 0.0
    random_erasing: float = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 0.5
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    crop: float = 1.0
    cache: bool = False
    shuffle_buffer: int = 8192
    xla: bool = True
    evaluation_epochs: int = 1
    steps_per_loop: int = 10
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    checkpoints_kept: int = 3

    def __post_init__(self):
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if len(self.input_shape) != 3 or not all(
            type(size) is int and size > 0 for size in self.input_shape
        ):
            raise ValueError(
                "`input_shape` must be (height, width, channels), positive integers. "
                f"Received: {self.input_shape}"
            )
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_ranges(
            self,
            (
                (("epochs", "batch_size", "steps_per_loop", "checkpoint_epochs"), 1, math.inf),
                (("checkpoints_kept", "accumulation_steps", "shuffle_buffer"), 1, math.inf),
                (("evaluation_epochs",), 1, math.inf),
                (("learning_rate", "router_lr_multiplier", "warmup_epochs"), 0, math.inf),
                (("weight_decay", "random_shift", "checkpoint_steps"), 0, math.inf),
                (("seed",), 0, 2**32),
                (("freeze_backbone_epochs", "freeze_routers_epochs"), 0, math.inf),
                ((*KERAS_CV, "first_label"), 0, math.inf),
                (("momentum", "label_smoothing", "ema_momentum", "random_resized_crop"), 0, 1),
                (("validation",), 0, 1),
                (("random_erasing", "rand_augment_magnitude"), 0, 1 + 1e-9),
            ),
        )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"`clip_norm` must be positive and finite. Received: {self.clip_norm}")
        if self.deterministic and (used := [k for k in KERAS_CV if getattr(self, k)]):
            raise ValueError(
                "keras-cv's augmentation does not repeat bit for bit: with `deterministic` set "
                f"{', '.join(used)} to 0 (the other augmentation is deterministic)."
            )

    def to_json(self):
        """The recipe as indented JSON, with a format number."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"


def check_ranges(recipe, ranges):
    """Makes sure that fields lie in a half-open range.

    Args:
        recipe: a dataclass.
        ranges: tuples of field names, lowest value, and the value that all must be under
            (1 + 1e-9 includes 1).

    Raises:
        ValueError: naming the first field that does not.
    """
    for names, low, high in ranges:
        for name in names:
            if not low <= getattr(recipe, name) < high:
                until = "1]" if high == 1 + 1e-9 else f"{high})"
                raise ValueError(
                    f"`{name}` must be in [{low}, {until}. Received: {getattr(recipe, name)}"
                )


IMAGENET = Recipe(
    model="resnet50",
    dataset="tfrecord",
    num_classes=1000,
    input_shape=(224, 224, 3),
    epochs=120,
    batch_size=1024,
    learning_rate=0.4,
    warmup_epochs=5,
    weight_decay=1e-4,
    label_smoothing=0.1,
    random_flip=True,
    random_resized_crop=0.08,
    crop=0.875,
    steps_per_loop=100,
    dtype="mixed_bfloat16",
)

RECIPES = {
    # The main job of `make demo`; see README for its measured result.
    "digits_resnet20": Recipe(
        model="resnet20_cifar",
        dataset="digits",
        input_shape=(16, 16, 3),
        epochs=15,
        batch_size=64,
        learning_rate=0.05,
        router_lr_multiplier=1.0,  # 330 steps are too few for slow routers to learn anything
        random_shift=1,
    ),
    # python -m train.imagenet --config cifar10_resnet20 --data-dir DIR --workdir runs/cifar10
    # See docs/training.md for its measured result.
    "cifar10_resnet20": Recipe(
        model="resnet20_cifar",
        dataset="folder",
        input_shape=(32, 32, 3),
        epochs=10,
        random_flip=True,
        random_shift=4,
    ),
    # As cifar10_resnet20, for a CPU: the stem halves the image, bfloat16.
    "cifar10_resnet20_fast": Recipe(
        model="resnet20_cifar",
        dataset="folder",
        input_shape=(32, 32, 3),
        epochs=10,
        model_overrides={"stem_strides": 2},
        dtype="mixed_bfloat16",
        random_flip=True,
        random_shift=4,
    ),
    # Schedule of He et al. 2016 (arXiv 1512.03385), section 4.2, as 164 epochs and cosine decay.
    # Not run here.
    "cifar10_resnet56": Recipe(
        model="resnet56_cifar",
        dataset="folder",
        input_shape=(32, 32, 3),
        epochs=164,
        weight_decay=1e-4,
        random_flip=True,
        random_shift=4,
    ),
    # The four at ImageNet's scale have not been run: there is no ImageNet and no GPU here. Their
    # settings are those with which the named sources train the static network.
    #
    # He et al., "Bag of Tricks" (arXiv 1812.01187): batch 1024, rate 0.4, 5 epochs of warm-up,
    # cosine, label smoothing, no decay of biases and normalisation, 120 epochs. bfloat16 is ours.
    "imagenet_resnet50": IMAGENET,
    # Same source, which trains its other networks alike.
    "imagenet_resnext50": dataclasses.replace(IMAGENET, model="resnext50_32x4d"),
    # Radosavovic et al. (arXiv 2003.13678) as in pycls's RegNetX-1.6GF: batch 1024, rate 0.8,
    # 100 epochs, 5 of warm-up, cosine, weight decay 5e-5, no label smoothing.
    "imagenet_regnetx_016": dataclasses.replace(
        IMAGENET,
        model="regnetx_016",
        epochs=100,
        learning_rate=0.8,
        weight_decay=5e-5,
        label_smoothing=0.0,
    ),
    # MMPretrain's schedule of MobileNetV2 (configs/_base_/schedules/imagenet_bs256_epochstep.py):
    # SGD, batch 256, rate 0.045, weight decay 4e-5, 300 epochs. Cosine and warm-up are ours.
    "imagenet_mobilenetv2": dataclasses.replace(
        IMAGENET,
        model="mobilenetv2_100",
        epochs=300,
        batch_size=256,
        learning_rate=0.045,
        weight_decay=4e-5,
        label_smoothing=0.0,
    ),
}


def get_recipe(name, overrides=(), recipes=RECIPES):
    """A recipe by name, with `key=value` strings applied.

    Args:
        name: a key of `recipes`.
        overrides: strings `"key=value"`; the value is JSON, or else a plain string.
            `model_overrides.depths=[2,2,2]` sets one entry of a dict.
        recipes: dict of name to a frozen dataclass.

    Raises:
        ValueError: for an unknown recipe or key (names the closest), or a value of a wrong kind.
    """
    if name not in recipes:
        raise ValueError(
            f"Unknown recipe {name!r}.{closest(name, recipes)} Recipes: {', '.join(recipes)}"
        )
    recipe = recipes[name]
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
