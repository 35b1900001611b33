"""Decisions that tests keep: imports follow the sample, one loop, no pickle, one explicit public list."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nacre

PACKAGE = Path(nacre.__file__).parent
ORDER = [
    {"errors", "seeds", "files", "settings", "limits"},
    {"data"},
    {"models"},
    {"losses"},
    {"training"},
    {"methods"},
    {"evaluation"},
    {"modelfile"},
    {"experiment"},
    {"study", "holding"},
    {"compare", "conducting"},
    {"compare_text"},
    {"compare_report"},
    {"lesson"},
    {"editing", "forecast", "predicting", "inspection", "export", "estimator"},
    {"worker", "terminal", "telling"},
    {"commands"},
    {"cli"},
    {"__main__"},
]


def rank(name: str) -> int:
    return next(i for i, names in enumerate(ORDER) if name in names)


def imports(path: Path) -> set[str]:
    """First names below `nacre` that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nacre":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names if alias.name != "__version__"]
            found.update(names)
    return found


def test_imports_follow_the_sample() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own != "__init__":
            wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in imports(path) if rank(name) > rank(own)]
    assert not wrong


def test_the_layers_name_every_module() -> None:
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set().union(*ORDER)


def calls(name: str) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def test_backward_is_called_in_one_place() -> None:
    places = calls("backward")
    assert len(places) == 1
    assert places[0].startswith("training/phases.py")


def test_no_pickle_but_through_the_restricted_unpickler() -> None:
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "data" / "unpickle.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] + [getattr(node, "module", "") or ""] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            assert not {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in names}
    assert not [place for name in ("broadcast_object_list", "all_gather_object") for place in calls(name)]
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    assert not any("torch.load(" in text or "torch.save(" in text for text in sources)


def test_no_method_is_made_from_a_concrete_one() -> None:
    from nacre.methods import METHODS
    from nacre.training.method import Method

    assert all(cls.__bases__ == (Method,) for cls in METHODS.values())


def test_every_public_name_is_there() -> None:
    assert all(getattr(nacre, name) is not None for name in nacre.__all__)


def test_importing_nacre_and_asking_for_help_import_nothing_heavy() -> None:
    code = "import sys, nacre, nacre.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'sklearn', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_draws_and_what_fits_is_imported_when_it_is_needed() -> None:
    rooms = ["terminal", "telling", "experiment", "compare_text", "conducting", "lesson", "predicting", "export", "commands.model"]
    heavy = ("matplotlib", "scipy", "sklearn", "onnx")
    code = f"import sys, {', '.join(f'nacre.{room}' for room in rooms)}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
