"""Imports point down, Lightning stays above its line, and private Lightning names stay in one file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rl_lightning"

LAYERS = (
    ("files", "types"),
    (
        "functional",
        "nn",
        "optim",
        "clipping",
        "denormals",
        "metrics",
        "randomness",
        "workers",
        "envs",
        "memory",
        "testing",
        "transfer",
    ),
    ("agents",),
    ("evaluation", "learning_graph"),
    ("strategies",),
    # ---- whatever is not named here is above this line, and may import Lightning ----
    ("experiments",),
    ("cli",),
    ("__main__",),
)
LINE = 5
"""How many layers are below the Lightning line."""
FACADES = ("__init__.py", "envs/__init__.py")
"""Files that offer names from above the line lazily: in `__getattr__`, and in its TYPE_CHECKING twin."""
PRIVATE = "_lightning/"
"""The only folder that may touch private Lightning names."""
LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
TOP_LEVEL = {"pyproject.toml", "rl_lightning", "tests", "examples", "configs", "README.md", ".ci", "LICENSE"}
SUBCLASSES = ("env_module.py", "module.py", "trainer.py")
"""Files whose classes inherit from Lightning, so that `self._name` may be Lightning's too."""


class Import(NamedTuple):
    """`module` is absolute; `names` is empty for a plain `import module`."""

    file: str
    line: int
    module: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"rl_lightning/{self.file}:{self.line} imports {self.module} {' '.join(self.names)}".rstrip()


@cache
def sources() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text(encoding="utf-8"), str(p)) for p in paths}


def layer_of(part: str) -> int:
    """The layer of `rl_lightning.<part>`; "" is the package's own `__init__`, which stands above all but the cli."""
    for index, names in enumerate(LAYERS):
        if part in names:
            return index if index < LINE else index + 1
    return len(LAYERS) - 1 if part == "" else LINE


def part_of(file: str) -> str:
    part = file.split("/")[0].removesuffix(".py")
    return "" if part == "__init__" else part


def is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(file: str, tree: ast.Module) -> Iterator[Import]:
    def walk(node: ast.AST) -> Iterator[Import]:
        if file in FACADES and is_lazy(node):
            return
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(file, node.lineno, absolute(file, node), names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(tree)


def absolute(file: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parents = ["rl_lightning", *file.split("/")[:-1]]
    return ".".join([*parents[: len(parents) + 1 - node.level], *([node.module] if node.module else [])])


def all_imports() -> list[Import]:
    return [found for file, tree in sources().items() for found in imports_of(file, tree)]


def parts_imported(found: Import) -> set[str]:
    """Which parts of rl_lightning an import reaches; `from rl_lightning import Agent` reaches the package's own ""."""
    root, _, rest = found.module.partition(".")
    if root != "rl_lightning":
        return set()
    if rest:
        return {rest.split(".")[0]}
    known = {part_of(file) for file in sources()}
    return {name if name in known else "" for name in found.names or ("",)}


def is_lightning(found: Import) -> bool:
    return found.module.split(".")[0] in LIGHTNING


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def below_the_line() -> list[str]:
    return [file for file in sources() if layer_of(part_of(file)) < LINE]


def test_the_package_is_there():
    """Or every check below would pass on nothing."""
    assert {"types.py", "module.py", "trainer.py", f"{PRIVATE}__init__.py"} <= set(sources())
    assert len(below_the_line()) >= 10


@pytest.mark.parametrize(
    ("part", "expected"),
    [("types", 0), ("nn", 1), ("strategies", 4), ("module", 5), ("callbacks", 5), ("experiments", 6), ("cli", 7)],
)
def test_layers_are_ranked_as_drawn(part, expected):
    assert layer_of(part) == expected


def test_an_import_is_read_whichever_way_it_is_written():
    lines = ("import rl_lightning.cli", "from rl_lightning import Agent, _lightning", "from . import spaces")
    code = "\n".join([*lines, "from .. import types"])
    reached = [parts_imported(found) for found in imports_of("envs/pool.py", ast.parse(code))]
    assert reached == [{"cli"}, {"", "_lightning"}, {"envs"}, {"types"}]


def test_only_a_facade_may_import_lazily():
    code = "def __getattr__(name):\n    from rl_lightning.trainer import Trainer\n    return Trainer"
    assert not list(imports_of("envs/__init__.py", ast.parse(code)))
    assert len(list(imports_of("agents/__init__.py", ast.parse(code)))) == 1


def test_imports_point_down():
    upward = [
        f"{found}: {part or 'rl_lightning'} is above {part_of(found.file)}"
        for found in all_imports()
        for part in parts_imported(found)
        if layer_of(part) > layer_of(part_of(found.file))
    ]
    assert not upward, "\n".join(["imports that point up:", *upward])


def test_no_two_parts_below_the_line_import_each_other():
    """nn may read a space through envs.spaces; envs may then not import nn."""
    arrows = {
        (part_of(found.file), part)
        for found in all_imports()
        for part in parts_imported(found)
        if layer_of(part_of(found.file)) < LINE and part != part_of(found.file)
    }
    both = sorted((a, b) for a, b in arrows if a < b and (b, a) in arrows)
    assert not both, f"imports in both directions: {both}"


def test_nothing_below_the_line_imports_lightning():
    below = set(below_the_line()) | {"__init__.py"}
    wrong = [str(found) for found in all_imports() if found.file in below and is_lightning(found)]
    assert not wrong, "\n".join(wrong)


def test_the_parts_below_the_line_run_without_lightning():
    """In a process of its own: a worker that imports them starts light."""
    modules = ["rl_lightning"]
    for file in below_the_line():
        name = f"rl_lightning/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        modules.append(name)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"found = sorted(set({LIGHTNING!r}) & set(sys.modules))\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_private_lightning_names_are_imported_in_one_folder():
    wrong = [
        str(found)
        for found in all_imports()
        if is_lightning(found) and not found.file.startswith(PRIVATE)
        if any(is_private(name) for name in [*found.module.split("."), *found.names])
    ]
    assert not wrong, "\n".join([f"private Lightning names outside {PRIVATE}:", *wrong])


def names_from_lightning(tree: ast.Module) -> set[str]:
    """The names that a file binds by importing them from Lightning."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases = [alias for alias in node.names if alias.name.split(".")[0] in LIGHTNING]
            bound |= {alias.asname or alias.name.split(".")[0] for alias in aliases}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIGHTNING:
            bound |= {alias.asname or alias.name for alias in node.names}
    return bound


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@cache
def private_names_of_lightning() -> frozenset[str]:
    """The private names that a Trainer, a LightningModule, a LightningDataModule or a Callback has."""
    import pytorch_lightning as pl
    from torch import nn

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(accelerator="cpu", **quiet)
    owners = [trainer, trainer.fit_loop, trainer.fit_loop.epoch_loop, pl.LightningModule(), pl.LightningDataModule()]
    names = {name for owner in [*owners, pl.Callback()] for name in dir(owner)}
    return frozenset(name for name in names - set(dir(nn.Module())) if is_private(name) and not name.startswith("_abc"))


def private_uses(file: str, tree: ast.Module) -> Iterator[str]:
    bound = names_from_lightning(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not is_private(node.attr):
            continue
        root = root_of(node.value)
        own = isinstance(node.value, ast.Name) and root in ("self", "cls") and file not in SUBCLASSES
        if root in bound or (node.attr in private_names_of_lightning() and not own):
            yield f"rl_lightning/{file}:{node.lineno} {ast.unparse(node)}"


def test_private_lightning_names_are_used_in_one_folder():
    wrong = [
        use for file, tree in sources().items() if not file.startswith(PRIVATE) for use in private_uses(file, tree)
    ]
    assert not wrong, "\n".join([f"private Lightning names outside {PRIVATE}:", *wrong])


@pytest.mark.parametrize(
    "code",
    [
        "import pytorch_lightning as pl\npl.trainer.call._call_setup_hook()",
        "from pytorch_lightning.trainer import call\ncall._call_setup_hook()",
        "trainer._checkpoint_connector.restore()",
        "trainer.fit_loop._data_fetcher",
    ],
)
def test_a_private_use_is_seen(code):
    assert list(private_uses("callbacks/checkpoint.py", ast.parse(code)))


def test_the_private_file_says_so():
    assert "private" in (ast.get_docstring(sources()[f"{PRIVATE}__init__.py"]) or "").lower()


def test_the_top_level_holds_only_what_belongs_there():
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    entries = {path.split("/")[0] for path in done.stdout.split("\0") if path}
    extra = {entry for entry in entries - TOP_LEVEL if not entry.startswith(".git")}
    assert not extra, f"move {sorted(extra)} under one of {sorted(TOP_LEVEL)}"
