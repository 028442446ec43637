"""What holds the folders together: directions of import, packaging, what loads what."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tomllib

from speechquant.pipeline.commands import COMMANDS, command_named

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

_STEPS = {"exporter", "calibrators", "engines", "zoo", "students"}
# Who may import whom; everyone may import itself.
ALLOWED = {
    "core": set(),
    **{step: {"core"} for step in _STEPS},
    "recipes": {"core", "exporter", "calibrators", "engines", "training"},
    "benchmarks": {"core", "recipes", *_STEPS},
    "pipeline": {"core", "recipes", "benchmarks", *_STEPS},
}
MOST_PARAMETERS = 6
# Functions with more, and why they have them still.
MORE_PARAMETERS = {
    "speechquant.engines.build.options_from_text": "goes when a backend is one record",
    "speechquant.engines.quantize.quantize_bundle": "gets an options object with the families",
    "speechquant.engines.whisper.decoding.decode": "gets an options object with the families",
}
MOST_MODULES = 20
MORE_MODULES = {"core": "bundles and seq2seq become one"}
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
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("speechquant", *parts)).removesuffix(".__init__")


def modules() -> list[tuple[str, Path]]:
    return [
        (module_name(path), path)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from speechquant import zoo` names a folder in its list, not in its module.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_point_one_way(module: str, path: Path) -> None:
    folder = module.split(".")[1]
    imported = {
        name.split(".")[1] for name in imported_names(path) if name.startswith("speechquant.")
    }
    assert imported - {folder} <= ALLOWED[folder]


@pytest.mark.parametrize(("family", "other"), [("ctc", "whisper"), ("whisper", "ctc")])
def test_no_family_knows_another(family: str, other: str) -> None:
    room = [path for name, path in modules() if name.startswith(f"speechquant.engines.{family}.")]
    assert room
    for path in room:
        imported = imported_names(path)
        assert not [n for n in imported if n.startswith(f"speechquant.engines.{other}")], path


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
    assert many == set(MORE_PARAMETERS)


def test_a_folder_holds_what_a_reader_can_take_in() -> None:
    counts = Counter(path.parent for _, path in modules() if path.name != "__init__.py")
    large = {
        str(folder.relative_to(ROOT)) for folder, count in counts.items() if count > MOST_MODULES
    }
    assert large == set(MORE_MODULES)


def test_the_list_of_commands_says_what_they_say() -> None:
    listed = {path.stem for path in (ROOT / "pipeline" / "commands").glob("*.py")}
    assert set(COMMANDS) == listed - {"__init__", "options"}
    assert {name: command_named(name).help for name in COMMANDS} == COMMANDS


def test_every_folder_is_packaged_and_typed() -> None:
    on_disk = [name for name, path in modules() if path.name == "__init__.py"]
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)
    named = {f"speechquant.{folder}": folder for folder in FOLDERS}
    assert SETUPTOOLS["package-dir"] == named
    assert set(named) <= set(SETUPTOOLS["package-data"])
    for folder in FOLDERS:
        assert (ROOT / "typings" / "speechquant" / folder).resolve() == ROOT / folder
        assert (ROOT / folder / "py.typed").is_file()


def test_speechquant_is_a_namespace() -> None:
    assert not (ROOT / "speechquant").exists()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Modules that are made of an optional package; they are imported by functions that need it.
NEEDS_OPTIONAL = {
    "speechquant.exporter.channel_norm": "torch",
    "speechquant.exporter.ctc_graph": "torch",
    "speechquant.exporter.wavlm_attention": "torch",
    "speechquant.exporter.whisper_graphs": "torch",
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
    ["core", "exporter", "calibrators", "engines", "recipes", "benchmarks", "zoo", "pipeline"],
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
