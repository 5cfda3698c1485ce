"""Warnings name the user's line, and are one line of a command. Those of the API: in its tests."""

import functools
import sys
import types
import warnings

import pytest

from dgnet_keras.user_warnings import on_one_line, warn


def through(module, call):
    """A function that calls another, in a module of such a name."""
    source = types.ModuleType(module)
    source.call = call
    exec("def function():\n    call()", vars(source))
    return source.function


def test_a_warning_names_the_line_outside_of_the_libraries():
    say = functools.partial(warn, "Look out.", RuntimeWarning)
    call = through("tensorflow.python", through("keras.src.trainers", say))
    with pytest.warns(RuntimeWarning, match=r"^Look out\.$") as caught:
        call()
        line = sys._getframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_a_users_module_called_train_is_the_users():
    with pytest.warns(UserWarning, match="Look out") as caught:
        through("train", functools.partial(warn, "Look out."))()
    assert caught[0].filename == "<string>"


def test_a_warning_of_a_command_is_one_line_without_source(capsys):
    with on_one_line("train.imagenet"):
        warn("Two\n  lines.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warn("Ignored.")
    assert capsys.readouterr().err == "train.imagenet: warning: Two lines.\n"
