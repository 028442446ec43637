"""What holds the folders together: directions of import, packaging, what loads what."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it along
    import tomli as tomllib

import speechquant
from speechquant.engines.build import build_engine
from speechquant.engines.session import load_source
from speechquant.pipeline.commands import COMMANDS, command_named

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

# Each may import what stands before it, and nothing beside it; everyone may import itself.
FLOORS: tuple[set[str], ...] = (
    {"core"},
    {"exporter", "calibrators", "engines", "training"},
    {"zoo", "students", "recipes"},
    {"benchmarks", "serve"},
    {"pipeline", "front"},
)
ALLOWED = {
    folder: set[str]().union(*FLOORS[:level])
    for level, floor in enumerate(FLOORS)
    for folder in floor
}
# What a reader can take in.
MOST_PARAMETERS = 6
MOST_MODULES_OF_A_ROOM = 24
OPTIONAL = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "espeakng_loader",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "openvino",
    "matplotlib",
    "jinja2",
    "av",
    "fastapi",
    "uvicorn",
    "starlette",
    "prometheus_client",
    "pyarrow",
    "fsspec",
    "ray",
    "grpc",
    "silero_vad",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    inner = parts[1:] if parts[0] == "front" else parts  # front/ is speechquant itself
    return ".".join(("speechquant", *inner)).removesuffix(".__init__")


@cache
def modules() -> list[tuple[str, Path]]:
    return [
        (module_name(path), path)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def folder_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@cache
def imports() -> dict[str, set[str]]:
    """Our modules that each of ours imports, anywhere in it: for type checkers, in functions."""
    known = dict(modules())
    return {name: imported_modules(path, known) - {name} for name, path in known.items()}


def imported_modules(path: Path, known: Collection[str]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from speechquant import zoo` names a folder in its list, not in its module.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & set(known) or {node.module}
    return names & set(known)


def circle_in(graph: Mapping[str, Collection[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_point_one_way(module: str, path: Path) -> None:
    known, folder = dict(modules()), folder_of(path)
    imported = {folder_of(known[name]) for name in imports()[module]}
    assert imported - {folder} <= ALLOWED[folder]


@pytest.mark.parametrize(("family", "other"), [("ctc", "whisper"), ("whisper", "ctc")])
def test_no_family_knows_another(family: str, other: str) -> None:
    room = [name for name, _ in modules() if name.startswith(f"speechquant.engines.{family}.")]
    assert room
    for name in room:
        assert not [n for n in imports()[name] if n.startswith(f"speechquant.engines.{other}.")]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of all parameters but the object itself."""
    given = function.args
    taken = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one.arg for one in taken if one is not None and one.arg not in {"self", "cls"}]


def test_values_that_travel_together_are_one_object() -> None:
    counts = {
        f"{module}.{node.name}": len(parameters(node))
        for module, path in modules()
        # What typer makes options of takes one each.
        if not module.startswith("speechquant.pipeline.commands")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(counts) > 1000
    many = {name for name, count in counts.items() if count > MOST_PARAMETERS}
    assert many == set()


def test_the_list_of_commands_says_what_they_say() -> None:
    listed = {path.stem for path in (ROOT / "pipeline" / "commands").glob("*.py")}
    assert set(COMMANDS) == listed - {"__init__", "options"}
    assert {name: command_named(name).help for name in COMMANDS} == COMMANDS


def room_of(name: str) -> str:
    """Return the folder of a module inside a folder; one beside such folders is its own room."""
    path = dict(modules())[name].relative_to(ROOT)
    return "/".join(path.parts[:-1]) if len(path.parts) > 2 else str(path)


def test_no_import_circle_among_modules() -> None:
    assert len(imports()["speechquant.engines.session"]) > 5
    assert circle_in(imports()) == []


def test_no_import_circle_among_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name, others in imports().items():
        room = room_of(name)
        rooms.setdefault(room, set()).update({room_of(other) for other in others} - {room})
    assert "engines/onnxruntime" in rooms["engines/openvino"]
    assert circle_in(rooms) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_what_is_run_as_a_page_is_imported_by_no_other() -> None:
    papers = {
        name: path for name, path in modules() if name.startswith("speechquant.benchmarks.papers.")
    }
    pages = {name for name, path in papers.items() if "__main__" in path.read_text()}
    assert len(pages) > 10
    assert not [(name, imports()[name] & pages) for name in papers if imports()[name] & pages]


def test_a_room_holds_what_a_reader_can_take_in() -> None:
    sizes = Counter(path.parent for _, path in modules() if path.name != "__init__.py")
    assert {room.name: size for room, size in sizes.items() if size > MOST_MODULES_OF_A_ROOM} == {}


def test_every_folder_is_packaged_and_typed() -> None:
    on_disk = [name for name, path in modules() if path.name == "__init__.py"]
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)
    named = {module_name(ROOT / folder / "__init__.py"): folder for folder in FOLDERS}
    assert SETUPTOOLS["package-dir"] == named
    assert set(named) <= set(SETUPTOOLS["package-data"])
    typings = ROOT / "typings" / "speechquant"
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
        if folder != "front":
            assert (typings / folder).resolve() == ROOT / folder
    for path in (ROOT / "front").glob("*.py*"):
        assert (typings / path.name).resolve() == path


def test_the_pythons_that_are_announced_are_the_tested_ones() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tested = re.search(r"^PYTHONS := (.*)$", makefile, re.MULTILINE)
    assert tested is not None
    prefix = "Programming Language :: Python :: "
    announced = [name.removeprefix(prefix) for name in PROJECT["project"]["classifiers"]]
    assert [name for name in announced if name.startswith("3.")] == tested[1].split()
    assert PROJECT["project"]["requires-python"] == f">={tested[1].split()[0]}"


def test_front_is_speechquant_itself() -> None:
    assert not (ROOT / "speechquant").exists()
    front = (ROOT / "front" / "__init__.py").read_text(encoding="utf-8")
    assert Path(str(speechquant.__file__)).read_text(encoding="utf-8") == front
    names = {name: getattr(speechquant, name) for name in speechquant.__all__}
    assert names["build"] is build_engine
    assert names["load"] is load_source
    assert names["__version__"] == PROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="'speechquant' has no attribute 'transcibe'"):
        speechquant.transcibe  # noqa: B018


def test_importing_speechquant_loads_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "onnxruntime", "soundfile", "typer", "importlib.metadata")
    loaded = python(
        "import sys\nbefore = set(sys.modules)\nimport speechquant\n"
        f"print([name for name in {heavy!r} if name in set(sys.modules) - before])"
    )
    assert loaded.strip() == "[]"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Modules that are made of an optional package; they are imported by functions that need it.
NEEDS_OPTIONAL = {
    "speechquant.exporter.channel_norm": "torch",
    "speechquant.exporter.ctc_graph": "torch",
    "speechquant.exporter.wavlm_attention": "torch",
    "speechquant.exporter.whisper_gates": "torch",
    "speechquant.exporter.whisper_graphs": "torch",
    "speechquant.serve.app": "fastapi",
    "speechquant.serve.forms": "starlette",
    "speechquant.serve.gate": "starlette",
    "speechquant.serve.meters": "prometheus_client",
    "speechquant.serve.server": "uvicorn",
    "speechquant.students.kdq.checkpoints": "torch",
    "speechquant.students.kdq.layers": "torch",
    "speechquant.students.kdq.quantizers": "torch",
    "speechquant.students.kdq.run": "torch",
    "speechquant.training.fake_quantization": "torch",
}


def test_every_module_imports_without_the_optional_packages() -> None:
    names = [name for name, _ in modules() if name not in NEEDS_OPTIONAL]
    python(
        "import importlib, sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )


@pytest.mark.parametrize(
    "package",
    [
        "core",
        "exporter",
        "calibrators",
        "engines",
        "students",
        "training",
        "recipes",
        "benchmarks",
        "serve",
        "zoo",
        "pipeline",
    ],
)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "matplotlib", "jinja2")
    loaded = python(
        f"import sys, speechquant.{package}\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_help_loads_no_numpy() -> None:
    loaded = python(
        "import sys\nfrom speechquant.pipeline.command import run\n"
        "code = run(['--help'])\n"
        "print(code, [n for n in ('numpy', 'torch', 'onnxruntime', 'soundfile') if n in sys.modules])"
    )
    assert loaded.strip().splitlines()[-1] == "0 []"


def test_no_path_of_a_machine_and_no_registry_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split("\0")
    forbidden = [
        f"{os.sep}work{os.sep}",
        f"{os.sep}root{os.sep}",
        "http" + "s://pypi",
        "index" + "-url",
    ]
    for name in tracked:
        path = ROOT / name
        if not name or path.is_symlink() or path.suffix in {".safetensors", ".png"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], name


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    lines = [
        f"speechquant {name} {inner}" if inner else f"speechquant {name}"
        for name in COMMANDS
        for inner in getattr(command_named(name), "commands", {"": None})
    ]
    assert len(lines) >= 7
    assert not [line for line in lines if line not in readme]
