"""The package without TensorFlow, for as long as a command only looks at its flags.

Importing TensorFlow takes many seconds. `dgnet_keras/__init__.py` does so, and runs before any of
the package's modules is imported.
"""

import importlib.util
import sys

PACKAGES = ("dgnet_keras", "dgnet_keras.layers")
_postponed = []


def postpone():
    """Lets modules of the package be imported without what its `__init__.py` files import.

    For processes that are a command of `train`, which have to call `load` before anything else of
    the package is used.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        _postponed.append(name)


def load():
    """Runs the `__init__.py` files that were postponed, the innermost first."""
    while _postponed:
        module = sys.modules[_postponed.pop()]
        module.__spec__.loader.exec_module(module)
