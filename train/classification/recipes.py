"""Recipes: frozen dataclasses that hold everything a run depends on, but where its data lies."""

import dataclasses
import typing

import train.recipes
from dgnet_keras.checks import closest
from train.recipes import (
    Amount,
    BudgetedRecipe,
    ClipNorm,
    Count,
    Deviations,
    DType,
    Interval,
    Means,
    Probability,
    Seed,
    Share,
    Whole,
    check_statistics,
    shown,
)

DATASETS = ("digits", "folder", "tfrecord", "tfds:NAME")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(BudgetedRecipe):
    """What a run trains, on what, and how.

    It has the keys of `dgnet_keras.layers.GraphOptions`, those of a budget (see `BudgetedRecipe`),
    and:

    Attributes:
        model: a variant of `dgnet_keras.list_variants()`.
        dataset: `"digits"` (embedded in scikit-learn), `"folder"` (class folders of images),
            `"tfrecord"` (ImageNet's usual shards) or `"tfds:NAME"` (TensorFlow Datasets).
        input_shape: [height, width, channels] in pixels.
        epochs: passes over the training images.
        batch_size: global: images an update, over all replicas and accumulated parts.
        seed: of initial weights, order of images and augmentation.
        deterministic: whether the run gives the same weights bit for bit when repeated.
        num_classes: of TFRecords without a `labels.txt`; None means as many as the data has.
        first_label: number of the first class in TFRecords; 1 in ImageNet's usual ones.
        validation: share of the training images that is held out, alike for every seed, and
            evaluated in place of the test images: to choose settings with. 0 is off.
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
        clip_norm: global norm that gradients are clipped to; None does not clip. Those that
            `router_clip_norm` clips do not count.
        ema_momentum: of the moving average of weights that is evaluated and saved; 0 is off.
        accumulation_steps: parts that a replica takes its share of the batch in, one by one.
        synchronized_norm: whether batch normalisation takes its statistics over all replicas.
        freeze_backbone_epochs: first epochs in which nodes and stem keep their weights and
            statistics (the classifier and the routers learn).
        freeze_routers_epochs: first epochs in which routers, edge logits and thresholds do.
        macs_spread: half of the range of the images' own targets around `macs_target`: images that
            the network at `distill_from`, or else the model itself, is in doubt about may compute
            more. 0 is off.
        router_clip_norm: global norm that the gradients of routers, edge logits and thresholds are
            clipped to; None does not clip.
        distill_from: a static network to learn from besides the labels, or None: anything that
            `--init-from` takes.
        distill_model: that network's variant, of `wiring="chain"`; None means that of `model`,
            with its `model_overrides`.
        distill_weight: of its part of the loss, the divergence (Kullback-Leibler) of the model's
            probabilities from that network's, times the temperature's square.
        distill_temperature: that both networks' logits are divided by for it.
        label_smoothing: in [0, 1).
        random_flip: whether training images are mirrored at random.
        random_shift: training images are shifted by up to so many pixels.
        random_resized_crop: the least share of the image's area in a random crop of random aspect
            ratio, 0.08 as a rule on ImageNet; 0 is off.
        random_erasing: probability that a rectangle of the image becomes noise.
        rand_augment_layers: operations of keras-cv's RandAugment; 0 is off.
        rand_augment_magnitude: of RandAugment, in [0, 1].
        mixup_alpha: of Keras's MixUp; 0 is off.
        cutmix_alpha: of Keras's CutMix; 0 is off. With both, each batch takes one at random.
        crop: of the evaluation's centre crop, see `Preprocessing`.
        mean: of pixels in [0, 1], a value a channel, or one for all: what the model's
            `Preprocessing` takes off, in training, the export and everywhere. Weights that others
            trained need theirs. None means ImageNet's for 3 channels, 0.5 otherwise.
        std: likewise, what pixels are then divided by.
        cache: whether the images' bytes are kept in memory, for data that fits in it.
        shuffle_buffer: records that are read and shuffled at a time (`"tfrecord"`, `"tfds:NAME"`).
        xla: whether accelerators compile with XLA; a CPU never does (3 to 4 times slower).
        evaluation_epochs: epochs between two evaluations; the last epoch is always evaluated.
        steps_per_loop: at most so many steps between two updates of the progress bar, the log and
            TensorBoard; fewer where they take more than 20 seconds.
        checkpoint_epochs: epochs between two checkpoints.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 is none.
        checkpoints_kept: how many of the newest checkpoints are kept.
    """

    FORMAT = 3

    model: str
    dataset: str
    input_shape: tuple[Count, Count, Count]
    epochs: Count
    batch_size: Count = 128
    seed: Seed = 0
    deterministic: bool = False
    num_classes: int | None = None
    first_label: Whole = 1
    validation: Share = 0.0
    model_overrides: dict = dataclasses.field(default_factory=dict)
    dtype: DType = "float32"
    optimizer: typing.Literal["sgd", "adamw"] = "sgd"
    learning_rate: Amount = 0.1
    router_lr_multiplier: Amount = 0.1
    warmup_epochs: Amount = 1.0
    momentum: Share = 0.9
    weight_decay: Amount = 5e-4
    clip_norm: ClipNorm = None
    ema_momentum: Share = 0.0
    accumulation_steps: Count = 1
    synchronized_norm: bool = False
    freeze_backbone_epochs: Whole = 0
    freeze_routers_epochs: Whole = 0
    macs_spread: Share = 0.0
    router_clip_norm: ClipNorm = None
    distill_from: str | None = None
    distill_model: str | None = None
    distill_weight: Amount = 1.0
    distill_temperature: typing.Annotated[float, Interval("(0, inf)")] = 1.0
    label_smoothing: Share = 0.0
    random_flip: bool = False
    random_shift: Whole = 0
    random_resized_crop: Share = 0.0
    random_erasing: Probability = 0.0
    rand_augment_layers: Whole = 0
    rand_augment_magnitude: Probability = 0.5
    mixup_alpha: Amount = 0.0
    cutmix_alpha: Amount = 0.0
    crop: typing.Annotated[float, Interval("(0, 1]")] = 1.0
    mean: Means = None
    std: Deviations = None
    cache: bool = False
    shuffle_buffer: Count = 8192
    xla: bool = True
    evaluation_epochs: Count = 1
    steps_per_loop: Count = 10
    checkpoint_epochs: Count = 1
    checkpoint_steps: Whole = 0
    checkpoints_kept: Count = 3

    def __post_init__(self):
        super().__post_init__()
        kind, _, name = self.dataset.partition(":")
        if self.dataset not in DATASETS[:-1] and not (kind == "tfds" and name):
            raise ValueError(
                f"`dataset` must be one of {', '.join(DATASETS)}.{closest(self.dataset, DATASETS)} "
                f"Received: {shown(self.dataset)}"
            )
        check_statistics(self.mean, self.std, self.input_shape[-1])
        if self.distill_model is not None and self.distill_from is None:
            raise ValueError(
                "`distill_model` is the variant of what lies at `distill_from`. "
                f"Received: distill_model={shown(self.distill_model)}, distill_from=null"
            )
        if self.deterministic and self.rand_augment_layers:
            raise ValueError(
                "keras-cv's RandAugment does not repeat bit for bit: with `deterministic` set "
                "rand_augment_layers to 0 (the other augmentation is deterministic). "
                f"Received: rand_augment_layers={self.rand_augment_layers}"
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

# Paths that compute about half; see docs/paths.md for what it gave.
HALF = {"wiring": "path", "macs_target": 0.55, "macs_weight": 40.0, "router_clip_norm": 1.0}

RECIPES = {
    # With wiring="chain" the first half of `make demo`; its measured result is in docs/index.md.
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
    # The second half of `make demo`: paths from the static network of the first.
    "digits_resnet20_path": Recipe(
        **HALF,
        model="resnet20_cifar",
        dataset="digits",
        input_shape=(16, 16, 3),
        epochs=20,
        batch_size=64,
        learning_rate=0.02,
        router_lr_multiplier=2.0,
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
    # Paths from a trained network. First the static network on these images, then paths from it.
    # Measured: 89.55 % static, 89.07 % at 0.548 of its multiply-adds (docs/paths.md), with
    # path_gradient=taken and macs_spread=0, which was the only way then.
    #   python -m train.imagenet --config cifar10_resnet56_path --data-dir DIR --workdir runs/static
    #     --init-from cifar_resnets.npz --set wiring=chain --set macs_target=null --set epochs=5
    #     --set learning_rate=0.01 --set weight_decay=5e-5
    #   python -m train.imagenet --config cifar10_resnet56_path --data-dir DIR --workdir runs/path
    #     --init-from runs/static --set distill_from=runs/static
    "cifar10_resnet56_path": Recipe(
        **HALF,
        model="resnet56_cifar",
        dataset="folder",
        input_shape=(32, 32, 3),
        epochs=14,
        learning_rate=0.03,
        router_lr_multiplier=2.0,
        warmup_epochs=0.05,
        weight_decay=1e-4,
        macs_fall=0.35,
        macs_spread=0.27,
        random_flip=True,
        random_shift=4,
        cache=True,
    ),
    # The four at ImageNet's scale have not been run: there is no ImageNet and no GPU here. Their
    # settings are those with which the named sources train the static network.
    #
    # He et al., "Bag of Tricks" (arXiv 1812.01187): batch 1024, rate 0.4, 5 epochs of warm-up,
    # cosine, label smoothing, no decay of biases and normalisation, 120 epochs. bfloat16 is ours.
    "imagenet_resnet50": IMAGENET,
    # Paths from timm's weights: --init-from and distill_from=resnet50.a1_in1k.safetensors, say.
    # After cifar10_resnet56_path, with the losses of LAUDNet (arXiv 2308.15949): T 4, half each.
    "imagenet_resnet50_path": dataclasses.replace(
        IMAGENET,
        **HALF,
        epochs=30,
        learning_rate=0.04,
        router_lr_multiplier=5.0,
        warmup_epochs=1,
        label_smoothing=0.0,
        distill_weight=1.0,
        distill_temperature=4.0,
    ),
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
    """A recipe by name, with `key=value` strings applied; see `train.recipes.get_recipe`."""
    return train.recipes.get_recipe(name, overrides, recipes)
