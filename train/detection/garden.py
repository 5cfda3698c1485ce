"""A detection recipe as a Model Garden experiment, with its task and optimizer."""

import math

import tensorflow as tf
from official.core import config_definitions as cfg
from official.modeling import optimization
from official.vision.configs import common, decoders, maskrcnn, retinanet
from official.vision.tasks import maskrcnn as maskrcnn_task
from official.vision.tasks import retinanet as retinanet_task

from dgnet_keras import convert, detection
from train.recipes import shown

# `tf.image.combined_non_max_suppression`, on the CPU also where there is a GPU. Model Garden's
# default "v2" finds the same (same figures on 32 COCO images) and takes 50 times as long on a CPU
# (303 s against 6 s, RetinaNet at 256 x 256); TPUs need it.
NMS = "batched"

# Model Garden's settings of its evaluation, which `evaluator.Evaluator` stands in for.
EVALUATION = (
    *("annotation_file", "max_num_eval_detections", "per_category_metrics"),
    *("use_approx_instance_metrics", "use_coco_metrics", "use_wod_metrics"),
)


def steps_per_epoch(recipe, train):
    """Updates a pass over the training images, at least 1."""
    return max(train.images // recipe.batch_size, 1)


def experiment(recipe, train, validation, num_classes):
    """Model Garden's `ExperimentConfig` of a recipe.

    Args:
        recipe: a `DetectionRecipe`.
        train: `Records` of the training images.
        validation: `Records` of the images to evaluate.
        num_classes: labels, the background's 0 included.

    Raises:
        ValueError: if `recipe.garden` sets what the experiment does not have, or the backbone is
            unknown.
    """
    make = _retinanet if recipe.detector == "retinanet" else _rcnn
    steps = steps_per_epoch(recipe, train)
    config = cfg.ExperimentConfig(
        runtime=cfg.RuntimeConfig(
            mixed_precision_dtype=recipe.dtype.removeprefix("mixed_"),
            loss_scale="dynamic" if recipe.dtype == "mixed_float16" else None,
        ),
        task=make(recipe, train, validation, num_classes),
        trainer=cfg.TrainerConfig(
            train_steps=recipe.epochs * steps,
            validation_steps=-1,  # all images
            steps_per_loop=recipe.steps_per_loop,
            optimizer_config=_optimizer(recipe, steps),
        ),
    )
    task = recipe.garden.get("task", {})
    others = set(recipe.garden) - {"task"}
    if others or not isinstance(task, dict) or set(task) & set(EVALUATION):
        raise ValueError(
            "`garden` sets what stands under `task` in Model Garden's experiment, but for "
            f"{', '.join(EVALUATION)}; loop and optimizer are set by the recipe's own keys. "
            f"Received: {shown(recipe.garden)}"
        )
    _check_kinds(task, config.task, "task")
    try:
        config.override(recipe.garden, is_strict=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`garden` does not fit Model Garden's experiment: {error}") from error
    return config


def _check_kinds(settings, config, place):
    """Makes sure that settings are of the kind that they replace: Model Garden takes any."""
    kinds = {cfg.base_config.Config: (dict, "settings by name"), bool: (bool, "true or false")}
    kinds |= dict.fromkeys((int, float), (int | float, "a number"))
    for name, value in settings.items():
        before, where = getattr(config, name, None), f"{place}.{name}"
        found = [kinds[kind] for kind in kinds if isinstance(before, kind)]
        if not found or value is None:
            continue
        wanted, said = found[0]
        if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(before, bool):
            raise ValueError(f"`garden`: {where} must be {said}. Received: {shown(value)}")
        if wanted is dict:
            _check_kinds(value, before, where)


def _model(recipe, num_classes):
    """What the configurations of both kinds of detector share."""
    return {
        "num_classes": num_classes,
        "input_size": [*recipe.image_size, 3],
        "min_level": recipe.min_level,
        "max_level": recipe.max_level,
        "backbone": detection.Backbone(
            type="dgnet",
            dgnet=detection.DGNet(
                **recipe.keywords(),
                name=recipe.model,
                seed=recipe.seed,
                macs_target=recipe.macs_target,
                macs_weight=recipe.macs_weight,
                overrides=recipe.model_overrides or None,
            ),
        ),
        "decoder": decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=recipe.fpn_filters)),
        "norm_activation": common.NormActivation(
            norm_momentum=recipe.norm_momentum,
            norm_epsilon=1e-4,
            use_sync_bn=recipe.synchronized_norm,
        ),
    }


def _data(module, recipe, records, training):
    """Model Garden's configuration of TFRecords."""
    parser = {"aug_rand_hflip": recipe.random_flip} if training else {}
    if training:
        parser |= dict(zip(("aug_scale_min", "aug_scale_max"), recipe.scale_range, strict=True))
    return module.DataConfig(
        input_path=records.pattern,
        is_training=training,
        global_batch_size=recipe.batch_size,
        drop_remainder=training,
        sharding=training,  # every host evaluates all images: figures are made from all of them
        dtype="float32",
        shuffle_buffer_size=min(max(records.images, 1), 1000),
        seed=recipe.seed if training else None,
        parser=module.Parser(**parser),
    )


def _common(module, recipe, train, validation):
    return {
        "train_data": _data(module, recipe, train, True),
        "validation_data": _data(module, recipe, validation, False),
        "losses": module.Losses(l2_weight_decay=recipe.weight_decay),
        "freeze_backbone": recipe.freeze_backbone,
    }


def _rcnn(recipe, train, validation, num_classes):
    masks = recipe.detector == "maskrcnn"
    off = {} if masks else dict.fromkeys(("mask_head", "mask_sampler", "mask_roi_aligner"))
    model = maskrcnn.MaskRCNN(
        **_model(recipe, num_classes),
        **off,
        include_mask=masks,
        anchor=maskrcnn.Anchor(anchor_size=recipe.anchor_size),
        rpn_head=maskrcnn.RPNHead(num_filters=recipe.fpn_filters),
        detection_head=maskrcnn.DetectionHead(
            num_convs=recipe.head_convs, num_filters=recipe.fpn_filters, fc_dims=recipe.fc_dims
        ),
        roi_generator=maskrcnn.ROIGenerator(
            pre_nms_top_k=2 * recipe.num_proposals,
            num_proposals=recipe.num_proposals,
            test_pre_nms_top_k=2 * recipe.num_proposals,
            test_num_proposals=recipe.num_proposals,
        ),
        roi_sampler=maskrcnn.ROISampler(num_sampled_rois=recipe.num_sampled_rois),
        detection_generator=maskrcnn.DetectionGenerator(
            max_num_detections=recipe.max_detections, nms_version=NMS
        ),
    )
    if masks:
        model.mask_head.num_filters = recipe.fpn_filters
        model.mask_head.num_convs = recipe.head_convs
        model.mask_sampler.num_sampled_masks = min(128, recipe.num_sampled_rois)
    return maskrcnn.MaskRCNNTask(model=model, **_common(maskrcnn, recipe, train, validation))


def _retinanet(recipe, train, validation, num_classes):
    model = retinanet.RetinaNet(
        **_model(recipe, num_classes),
        anchor=retinanet.Anchor(anchor_size=recipe.anchor_size),
        head=retinanet.RetinaNetHead(num_convs=recipe.head_convs, num_filters=recipe.fpn_filters),
        detection_generator=retinanet.DetectionGenerator(
            max_num_detections=recipe.max_detections, nms_version=NMS
        ),
    )
    return retinanet.RetinaNetTask(model=model, **_common(retinanet, recipe, train, validation))


def _optimizer(recipe, steps):
    sgd = {"momentum": recipe.momentum, "global_clipnorm": recipe.clip_norm}
    rate = {"type": "cosine", "cosine": {
        "initial_learning_rate": recipe.learning_rate, "decay_steps": recipe.epochs * steps,
    }}  # fmt: skip
    if recipe.decay_epochs:
        values = [recipe.learning_rate * 0.1**k for k in range(len(recipe.decay_epochs) + 1)]
        boundaries = [epoch * steps for epoch in recipe.decay_epochs]
        rate = {"type": "stepwise", "stepwise": {"boundaries": boundaries, "values": values}}
    config = {"optimizer": {"type": "sgd", "sgd": sgd}, "learning_rate": rate}
    if recipe.warmup_steps:
        linear = {
            "warmup_steps": min(recipe.warmup_steps, recipe.epochs * steps),
            "warmup_learning_rate": recipe.learning_rate / 10,
        }
        config["warmup"] = {"type": "linear", "linear": linear}
    return optimization.OptimizationConfig(config)


class _CocoTask:
    """What is ours in both of Model Garden's detection tasks.

    Attributes:
        evaluator: an `Evaluator`, set by `make_task`.
    """

    evaluator = None

    def build_metrics(self, training=True):
        """Model Garden's, with our evaluator in place of its own."""
        metrics = super().build_metrics(training=training)
        if not training:
            self.coco_metric = self.evaluator
        return metrics

    def build_inputs(self, params, input_context=None):
        """Model Garden's; for evaluation all images, and as many batches for each replica.

        A replica that is left without a batch would run on none, which fails in TensorFlow 2.20.
        The images that come twice are counted once by the `Evaluator`.
        """
        dataset = super().build_inputs(params, input_context)
        if params.is_training or input_context is None:
            return dataset
        replicas = input_context.num_replicas_in_sync // input_context.num_input_pipelines
        batch_size = params.global_batch_size // input_context.num_replicas_in_sync
        batches = math.ceil(self.evaluator.image_count / batch_size)
        return dataset.repeat().take(math.ceil(batches / replicas) * replicas)


class RcnnTask(_CocoTask, maskrcnn_task.MaskRCNNTask):
    """Faster R-CNN and Mask R-CNN."""

    def _build_coco_metrics(self):
        """Nothing: Model Garden's would write an annotation file for masks."""


class RetinaNetTask(_CocoTask, retinanet_task.RetinaNetTask):
    """RetinaNet."""


def make_task(params, evaluator):
    """The task of an experiment.

    Args:
        params: of `experiment`.
        evaluator: an `Evaluator`.
    """
    retina = isinstance(params.task, retinanet.RetinaNetTask)
    task = (RetinaNetTask if retina else RcnnTask)(params.task)
    task.evaluator = evaluator
    return task


def create_optimizer(params, model, router_lr_multiplier):
    """The experiment's optimizer, with a learning rate of their own for routers.

    Model Garden's SGD knows no such thing: the routers' gradients are scaled, after clipping,
    which is the same for SGD with momentum.

    Args:
        params: of `experiment`.
        model: the detector.
        router_lr_multiplier: of the learning rate, for routers, edge logits and thresholds.
    """
    by_path = model.backbone.variables_by_path
    routers = {v.ref() for path, v in by_path.items() if convert.is_wiring_weight(path)}

    def slow_routers(gradients):
        clip = params.trainer.optimizer_config.optimizer.sgd.global_clipnorm
        if clip:
            clipped, _ = tf.clip_by_global_norm([g for g, _ in gradients], clip)
            gradients = [(g, v) for g, (_, v) in zip(clipped, gradients, strict=True)]
        return [(g * router_lr_multiplier if v.ref() in routers else g, v) for g, v in gradients]

    config = params.trainer.optimizer_config
    factory = optimization.OptimizerFactory(config.replace())
    factory._optimizer_config.global_clipnorm = None
    return factory.build_optimizer(
        factory.build_learning_rate(), gradient_transformers=[slow_routers]
    )
