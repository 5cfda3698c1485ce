"""Recipes for object detection: frozen dataclasses, a row a recipe."""

import dataclasses
import math
import typing

from train.recipes import (
    Amount,
    BudgetedRecipe,
    ClipNorm,
    Count,
    DType,
    Interval,
    Seed,
    Share,
    Whole,
    shown,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRecipe(BudgetedRecipe):
    """Which detector is trained, on what, and how.

    It has the keys of `dgnet_keras.layers.GraphOptions`, those of a budget (see `BudgetedRecipe`),
    and:

    Attributes:
        detector: `"fasterrcnn"`, `"maskrcnn"` or `"retinanet"`, each with a feature pyramid
            network.
        model: the backbone, a variant of `dgnet_keras.list_variants()`.
        image_size: [height, width] in pixels that images are resized to, aspect ratio kept, and
            padded to; multiples of 2^max_level.
        epochs: passes over the training images.
        batch_size: global: images an update, over all replicas.
        seed: of initial weights and order of images.
        train_split: name of the training split in the data; empty: the first that starts with
            `train`.
        validation_split: likewise, `val` or `test`.
        train_images: only the first so many training images, by id; 0 means all.
        validation_images: likewise.
        model_overrides: fields of the family's Spec.
        dtype: dtype policy; `"mixed_float16"` scales the loss dynamically.
        learning_rate: of SGD with momentum, for the whole batch.
        router_lr_multiplier: of the learning rate of routers, edge logits and thresholds.
        momentum: of SGD.
        warmup_steps: steps of a linear rise from a tenth of the learning rate.
        decay_epochs: epochs after which the learning rate falls to a tenth; empty: cosine decay.
        weight_decay: L2 of the convolutions' kernels (not routers').
        clip_norm: global norm that gradients are clipped to; None does not clip.
        freeze_backbone: whether the backbone keeps its weights and statistics.
        synchronized_norm: whether batch normalisation takes its statistics over all replicas.
        norm_momentum: of the moving statistics of batch normalisation.
        random_flip: whether training images are mirrored at random.
        scale_range: [least, greatest] factor that training images are resized by at random.
        min_level: finest level of the feature pyramid; its stride is 2^level.
        max_level: coarsest level.
        fpn_filters: channels of the feature pyramid and of the heads.
        head_convs: convolutions of the box head (RetinaNet: of both heads).
        fc_dims: units of the box head's dense layer (not RetinaNet).
        anchor_size: side of the smallest anchor of a level, in strides.
        num_proposals: regions of interest an image (not RetinaNet).
        num_sampled_rois: of these, used an image in training.
        max_detections: boxes an image at most.
        evaluation_epochs: epochs between two evaluations; the last epoch is always evaluated.
        steps_per_loop: at most so many steps between two updates of the progress bar, the log and
            TensorBoard; fewer where they take more than 20 seconds.
        checkpoints_kept: how many of the newest checkpoints (one an epoch that is evaluated) are
            kept.
        garden: any other setting of the task in Model Garden's experiment, as nested dicts, such
            as `{"task": {"losses": {"box_loss_weight": 20}}}`.
    """

    FORMAT = 1

    detector: typing.Literal["fasterrcnn", "maskrcnn", "retinanet"]
    model: str
    image_size: tuple[Count, Count]
    epochs: Count
    batch_size: Count = 16
    seed: Seed = 0
    train_split: str = ""
    validation_split: str = ""
    train_images: Whole = 0
    validation_images: Whole = 0
    model_overrides: dict = dataclasses.field(default_factory=dict)
    dtype: DType = "float32"
    learning_rate: Amount = 0.02
    router_lr_multiplier: Amount = 0.1
    momentum: Share = 0.9
    warmup_steps: Whole = 500
    decay_epochs: tuple[Count, ...] = ()
    weight_decay: Amount = 1e-4
    clip_norm: ClipNorm = None
    freeze_backbone: bool = False
    synchronized_norm: bool = False
    norm_momentum: Share = 0.9
    random_flip: bool = True
    scale_range: tuple[float, float] = (1.0, 1.0)
    min_level: typing.Annotated[int, Interval("[2, 6)")] = 2
    max_level: int = 6
    fpn_filters: Count = 256
    head_convs: Whole = 4
    fc_dims: Count = 1024
    anchor_size: typing.Annotated[float, Interval("[0.1, inf)")] = 8.0
    num_proposals: Count = 1000
    num_sampled_rois: Count = 512
    max_detections: Count = 100
    evaluation_epochs: Count = 1
    steps_per_loop: Count = 100
    checkpoints_kept: Count = 3
    garden: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        Interval(f"[{self.min_level}, inf)").check("max_level", self.max_level)
        stride = 2**self.max_level
        if any(size % stride for size in self.image_size):
            raise ValueError(
                f"`image_size` must be [height, width], multiples of 2^max_level = {stride}. "
                f"Received: {shown(self.image_size)}"
            )
        if not 0 < self.scale_range[0] <= self.scale_range[1] < math.inf:
            raise ValueError(
                "`scale_range` must be [least, greatest], positive and finite. "
                f"Received: {shown(self.scale_range)}"
            )
        if self.freeze_backbone and self.macs_target is not None:
            raise ValueError(
                "`macs_target` is a loss of the backbone, which `freeze_backbone` keeps as it is. "
                f"Received: macs_target={self.macs_target}, freeze_backbone=true"
            )
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise ValueError(f"`decay_epochs` must rise. Received: {shown(self.decay_epochs)}")


_COCO = DetectionRecipe(
    detector="fasterrcnn",
    model="resnet50",
    image_size=(832, 1344),
    epochs=12,
    learning_rate=0.02,
    decay_epochs=(8, 11),
    freeze_backbone=False,
    synchronized_norm=True,
    dtype="mixed_bfloat16",
)

# For tests and CPUs. The backbone is a ResNet-18 of half the width.
_TINY = DetectionRecipe(
    detector="fasterrcnn",
    model="resnet18",
    image_size=(128, 128),
    epochs=40,
    batch_size=8,
    model_overrides={"widths": [32, 64, 128, 256]},
    learning_rate=0.02,
    warmup_steps=50,
    clip_norm=10.0,
    fpn_filters=64,
    head_convs=1,
    fc_dims=256,
    anchor_size=4.0,
    num_proposals=200,
    num_sampled_rois=64,
    evaluation_epochs=10,
    steps_per_loop=10,
)

RECIPES = {
    # torchvision's and Detectron2's 1x schedule of Faster R-CNN R-50 FPN: batch 16, rate 0.02,
    # 12 epochs, a tenth after 8 and 11, shorter side 800, longer at most 1333. bfloat16 and
    # synchronised normalisation (theirs is frozen) are ours. Not run here.
    "coco_fasterrcnn_dgresnet50_1x": _COCO,
    # Mask R-CNN with the same schedule. Not run here.
    "coco_maskrcnn_dgresnet50_1x": dataclasses.replace(_COCO, detector="maskrcnn"),
    # Lin et al. (arXiv 1708.02002): rate 0.01 at batch 16, P3 to P7. Not run here.
    "coco_retinanet_dgresnet50_1x": dataclasses.replace(
        _COCO,
        detector="retinanet",
        image_size=(896, 1408),
        learning_rate=0.01,
        min_level=3,
        max_level=7,
        anchor_size=4.0,
    ),
    # A light RetinaNet, trained four times as long at 512 x 512. Ours; not run here.
    "coco_retinanet_dgmobilenetv2": dataclasses.replace(
        _COCO,
        detector="retinanet",
        model="mobilenetv2_100",
        image_size=(512, 512),
        epochs=48,
        batch_size=64,
        learning_rate=0.04,
        decay_epochs=(),
        scale_range=(0.5, 1.5),
        min_level=3,
        max_level=7,
        fpn_filters=128,
        anchor_size=4.0,
    ),
    "coco_tiny_fasterrcnn": _TINY,
    "coco_tiny_maskrcnn": dataclasses.replace(_TINY, detector="maskrcnn"),
    "coco_tiny_retinanet": dataclasses.replace(
        _TINY, detector="retinanet", min_level=3, max_level=6, learning_rate=0.01
    ),
}
