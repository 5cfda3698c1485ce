"""The public API has type hints, and users' type checkers see them.

That they are right is mypy's to say (`make lint`).
"""

import ast
import configparser
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "dgnet_keras"
# The command line is used from a shell.
MODULES = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py" and path.parent.name != "commands"
)


def is_public(name):
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def functions(body, prefix=""):
    """Yields (name, definition, whether it is a method) of what is public, methods included.

    Private classes count: public ones inherit from them, or are returned by public functions.
    """
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.If):  # `if TYPE_CHECKING:`
            yield from functions(node.body, prefix)
        elif isinstance(node, ast.FunctionDef) and is_public(node.name):
            yield prefix + node.name, node, bool(prefix)


def incomplete(source):
    """Names of the public functions of a module that lack a hint, and what they lack it for."""
    found = []
    for name, node, is_method in functions(ast.parse(source).body):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args]
        decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
        if is_method and "staticmethod" not in decorators:
            named = named[1:]  # `self` or `cls`
        named += [*arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        lacking = [a.arg for a in named if a is not None and a.annotation is None]
        lacking += ["return"] if node.returns is None else []
        if lacking:
            found.append(f"{name}: {', '.join(lacking)}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_public_functions_of_a_module_have_whole_type_hints(module):
    assert not incomplete((PACKAGE / module).read_text())


def test_a_missing_hint_is_found():
    source = """
def whole(a: int, *b: int, c: int = 0, **d: int) -> int: ...
def part(a, b: int, /, *c, d=0, **e): ...
def _private(a): ...
class _Base:
    @property
    def size(self): ...
    @staticmethod
    def make(a) -> None: ...
    def _helper(self, a): ...
class Public(_Base):
    if TYPE_CHECKING:
        def __init__(self, a: int, b) -> None: ...
"""
    assert incomplete(source) == [
        "part: a, d, c, e, return",
        "_Base.size: return",
        "_Base.make: a",
        "Public.__init__: b",
    ]


def test_the_package_says_that_it_has_type_hints():
    assert (PACKAGE / "py.typed").exists()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "py.typed" in config["options.package_data"]["dgnet_keras"].split(", ")
