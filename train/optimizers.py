"""Optimizers of a recipe: schedule, decay, loss scaling, the routers' own learning rate."""

import keras

from dgnet_keras.convert import is_wiring_weight


class RouterRate:
    """Mix-in of Keras optimizers: some variables have a multiple of the learning rate.

    Attributes:
        rate_multipliers: dict of a variable's index among those that the optimizer was built with
            to the factor of its learning rate.
    """

    rate_multipliers = None

    def update_step(self, gradient, variable, learning_rate):
        """One update, at the variable's own learning rate."""
        factor = (self.rate_multipliers or {}).get(self._get_variable_index(variable), 1.0)
        super().update_step(gradient, variable, learning_rate * factor)


class SGD(RouterRate, keras.optimizers.SGD):
    """SGD with a learning rate of their own for some variables."""


class AdamW(RouterRate, keras.optimizers.AdamW):
    """AdamW with a learning rate of their own for some variables (decay is at the common one)."""


def is_decayed(variable):
    """Kernels are decayed; normalisation, biases, edge logits and thresholds (rank < 2) are not."""
    return len(variable.shape) > 1


def create_optimizer(recipe, steps_per_epoch, variables):
    """A built optimizer: linear warm-up, then cosine decay to 0.

    The weight decay of SGD is not in it: the engine adds L2 to the gradients, after clipping.

    Args:
        recipe: a `Recipe`.
        steps_per_epoch: updates an epoch.
        variables: all variables that are ever trained.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)
    options = {
        "learning_rate": keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else recipe.learning_rate,
            decay_steps=total - warmup,
            warmup_target=recipe.learning_rate if warmup else None,
            warmup_steps=warmup,
        ),
        "use_ema": recipe.ema_momentum > 0,
        "ema_momentum": recipe.ema_momentum,
        "name": "optimizer",
    }
    if recipe.optimizer == "sgd":
        optimizer = SGD(momentum=recipe.momentum, nesterov=recipe.momentum > 0, **options)
    else:
        optimizer = AdamW(weight_decay=recipe.weight_decay, **options)
        optimizer.exclude_from_weight_decay([v for v in variables if not is_decayed(v)])
    optimizer.rate_multipliers = {
        index: recipe.router_lr_multiplier
        for index, variable in enumerate(variables)
        if is_wiring_weight(variable.path)
    }
    if recipe.dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(variables)
    return optimizer
