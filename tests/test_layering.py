"""The floors of the house: which room may import which, read from the source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [("amopo", ROOT / "amopo"), ("amopo_kernels", ROOT / "kernels" / "amopo_kernels")]

# room -> (floor, rooms of the same floor that it must know nothing of)
FLOORS: dict[str, tuple[int, frozenset[str]]] = {
    "amopo_kernels": (1, frozenset()),
    "amopo.registry": (1, frozenset({"amopo_kernels"})),
    "amopo.ending": (1, frozenset()),
    "amopo.weights": (2, frozenset({"amopo.data", "amopo.packing"})),
    "amopo.objectives": (2, frozenset({"amopo.data", "amopo.packing"})),
    "amopo.data": (2, frozenset({"amopo.objectives", "amopo.weights"})),
    "amopo.templates": (2, frozenset({"amopo.objectives", "amopo.weights"})),
    "amopo.packing": (2, frozenset({"amopo.objectives", "amopo.weights", "amopo.data"})),
    "amopo.fused_loss": (3, frozenset()),
    "amopo.head": (3, frozenset()),
    "amopo.head_adapters": (3, frozenset()),
    "amopo.head_weight": (3, frozenset()),
    "amopo.packed": (3, frozenset()),
    "amopo.padded": (3, frozenset()),
    "amopo.preference_loss": (3, frozenset()),
    "amopo.sequence_parallel": (3, frozenset()),
    "amopo.value_checks": (3, frozenset()),
    "amopo.trainer": (4, frozenset()),
    "amopo.integrations": (4, frozenset()),
    "amopo.memory": (4, frozenset()),
    "amopo.evaluation": (4, frozenset()),
    "amopo.cli": (5, frozenset()),
    "amopo.report": (5, frozenset()),
    "amopo.study": (5, frozenset()),
    "amopo.__main__": (5, frozenset()),
    # the package itself: `from amopo import __version__`, or a public name through the lazy table
    "amopo": (4, frozenset()),
}

# What a floor may import from outside while it is being loaded (the core needs torch alone). Floors 4 and 5 are free.
OUTSIDE: dict[int, frozenset[str]] = {1: frozenset({"torch"}), 2: frozenset({"torch"}), 3: frozenset({"torch"})}
OUTSIDE_OF_ROOM: dict[str, frozenset[str]] = {
    "amopo_kernels.triton": frozenset({"torch", "triton"}),
    "amopo.packing": frozenset({"torch", "transformers"}),
}
# Never, not even inside a function.
NEVER: dict[str, frozenset[str]] = {
    room: frozenset({"transformers", "trl", "deepspeed", "peft", "datasets"})
    for room in ("amopo_kernels", "amopo.weights", "amopo.objectives", "amopo.data")
}
# But for these, each in one module that is asked for it by name.
BUT_IN: dict[str, frozenset[str]] = {"amopo.data.sources.hub": frozenset({"datasets"})}
HEAVY = ("transformers", "trl", "deepspeed", "matplotlib", "triton", "datasets", "pyarrow")
PRINT_HEAVY = f"import json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int
    eager: bool  # at module level: runs when the importer is loaded

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in SOURCES:
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(module: str, path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, eager: bool) -> None:
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, path, node)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.append(Import(module, submodule if submodule in MODULES else base, node.lineno, eager))
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, eager and not inside_function)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def absolute_base(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (path.name == "__init__.py")]
    return ".".join([*parts, node.module] if node.module else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "amopo_kernels":
        return "amopo_kernels"
    return ".".join(parts[:2])


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("amopo", "amopo_kernels")


ALL_IMPORTS = [item for name, path in MODULES.items() for item in imports_of(name, path)]
OUR_IMPORTS = [item for item in ALL_IMPORTS if is_ours(item.imported)]
OUTSIDE_IMPORTS = [
    item
    for item in ALL_IMPORTS
    if not is_ours(item.imported) and item.imported.split(".")[0] not in sys.stdlib_module_names
]


def test_every_module_stands_in_a_room_of_the_table():
    strangers = sorted({name for name in MODULES if room_of(name) not in FLOORS})
    assert not strangers, f"give these modules a floor, or move them: {strangers}"


def test_no_floor_imports_a_higher_one():
    wrong = [
        str(item)
        for item in OUR_IMPORTS
        if room_of(item.importer) != room_of(item.imported)
        and FLOORS[room_of(item.imported)][0] > FLOORS[room_of(item.importer)][0]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_of_one_floor_know_nothing_of_those_they_must_not():
    wrong = [str(item) for item in OUR_IMPORTS if room_of(item.imported) in FLOORS[room_of(item.importer)][1]]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for item in OUR_IMPORTS:
        # a package's own __init__ may gather its modules; they reach each other directly
        if item.imported in MODULES and item.imported != item.importer:
            edges[item.importer].add(item.imported)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail("a circle of imports: " + " -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            for following in sorted(edges[name]):
                walk(following, (*path, name))
            done.add(name)

    for name in sorted(edges):
        walk(name, ())


def test_lower_floors_load_with_torch_alone():
    wrong = []
    for item in OUTSIDE_IMPORTS:
        room = room_of(item.importer)
        if not item.eager or FLOORS[room][0] not in OUTSIDE:
            continue
        allowed = OUTSIDE[FLOORS[room][0]]
        for name, names in OUTSIDE_OF_ROOM.items():
            if item.importer == name or item.importer.startswith(name + "."):
                allowed = names
        if item.imported.split(".")[0] not in allowed:
            wrong.append(str(item))
    assert not wrong, "\n".join(wrong)


def test_some_rooms_never_know_the_ecosystem():
    wrong = [
        str(item)
        for item in OUTSIDE_IMPORTS
        if item.imported.split(".")[0]
        in NEVER.get(room_of(item.importer), frozenset()) - BUT_IN.get(item.importer, frozenset())
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_is_a_folder_and_not_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def run_python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_amopo_loads_nothing_heavy():
    assert json.loads(run_python("import amopo; dir(amopo);" + PRINT_HEAVY)) == []


def test_the_loss_loads_nothing_heavy():
    loaded = json.loads(run_python("from amopo import fused_loss, pack;" + PRINT_HEAVY))
    # Triton comes with CUDA only
    assert [name for name in loaded if name != "triton"] == []


def test_every_public_name_is_there_and_keeps_its_meaning():
    code = """
import importlib, types, amopo
assert set(amopo.__all__) == {"__version__", *amopo._EXPORTS}
first = {name: getattr(amopo, name) for name in amopo.__all__}
for name, (module, attribute) in amopo._EXPORTS.items():
    importlib.import_module(module)
    assert getattr(amopo, name) is first[name], name
    assert name in dir(amopo), name
assert callable(amopo.fused_loss) and not isinstance(amopo.fused_loss, types.ModuleType)
try:
    amopo.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise SystemExit("an unknown name must raise")
"""
    run_python(code)


def test_a_submodule_does_not_take_the_name_of_its_function():
    run_python("import amopo.fused_loss, amopo, types; assert not isinstance(amopo.fused_loss, types.ModuleType)")


def calls_of(module: str, tree: ast.AST) -> list[ast.Attribute]:
    """Every `module.name` in a source, however the result is used."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    ]


def unsafe_loads(source: str) -> list[str]:
    """What in a source could run code that stands in a data file."""
    tree = ast.parse(source)
    found = [f"yaml.{node.attr}" for node in calls_of("yaml", tree) if node.attr not in ("safe_load", "YAMLError")]
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("yaml", "pickle", "dill"):
            found.append(f"from {node.module} import")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += ["from torch import load" for alias in node.names if alias.name == "load"]
        elif isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name in ("pickle", "dill")]
            found += [f"import {a.name} as {a.asname}" for a in node.names if a.name in ("yaml", "torch") and a.asname]
        elif isinstance(node, ast.Call):
            only = [k.value for k in node.keywords if k.arg == "weights_only"]
            if len(only) == 1 and isinstance(only[0], ast.Constant) and only[0].value is True:
                safe.add(id(node.func))
    found += ["torch.load" for node in calls_of("torch", tree) if node.attr == "load" and id(node) not in safe]
    return found


def test_nothing_that_is_read_can_run_code():
    wrong = {name: found for name, path in MODULES.items() if (found := unsafe_loads(path.read_text(encoding="utf-8")))}
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "yaml.load(text)",
        "read = yaml.full_load",
        "from yaml import load",
        "import yaml as y",
        "import pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "read = torch.load",
        "from torch import load",
    ],
)
def test_unsafe_loads_are_seen(source):
    assert unsafe_loads(source)
    assert not unsafe_loads("yaml.safe_load(text); torch.load(path, weights_only=True)")
