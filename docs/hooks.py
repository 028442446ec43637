"""Pages of the site that are made from the code: the home page, the commands, the Python names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import speechquant
from speechquant.pipeline.commands import COMMANDS, command_named

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]*)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {"index.md": home(), "commands.md": commands(), "python.md": python_names()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leave of links to files beside docs/, which are not on the site, the words alone."""
    folder = ROOT / "docs" / Path(page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        is_on_site = (folder / link[2]).resolve().is_relative_to(ROOT / "docs")
        return link[0] if is_on_site else link[1]

    return _LINK.sub(kept, markdown)


def home() -> str:
    """Return the README, whose links begin at the root."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"\[([^\]]*)\]\(CONTRIBUTING\.md\)", r"\1 (CONTRIBUTING.md)", text)


def commands() -> str:
    """Return the help of every command."""
    lines = ["# Commands", ""]
    for name in COMMANDS:
        command = command_named(name)
        inner = getattr(command, "commands", None)
        called = {f"{name} {sub}": one for sub, one in inner.items()} if inner else {name: command}
        for title, one in called.items():
            lines += _command_lines(title, one)
    return "\n".join(lines)


def _command_lines(title: str, command: Any) -> list[str]:
    lines = [f"## speechquant {title}", "", command.help or "", ""]
    rows = []
    for parameter in command.params:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        default = parameter.show_default if isinstance(parameter.show_default, str) else ""
        if not default and parameter.default not in (None, False, (), []):
            default = str(parameter.default)
        text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        rows.append(f"| {names} | {text} | {default} |")
    return [*lines, "| option | what it does | default |", "|---|---|---|", *rows, ""]


def python_names() -> str:
    """Return a page on what `import speechquant as sq` offers.

    mkdocstrings does not find a package whose folders do not lie in one.
    """
    lines = ["# Python", "", "`import speechquant as sq` has these names.", ""]
    for name in speechquant.__all__:
        if name == "__version__":
            continue
        found = getattr(speechquant, name)
        lines += [f"## sq.{name}", "", "```python", _called(name, found), "```", ""]
        lines += [inspect.getdoc(found) or "", ""]
    return "\n".join(lines)


def _called(name: str, found: Any) -> str:
    """Return the name with its parameters, one a line where they are many."""
    signature = inspect.signature(found)
    parts = [re.sub(r": '([^']*)'", r": \1", str(one)) for one in signature.parameters.values()]
    text = f"{name}({', '.join(parts)})"
    return (
        text if len(text) < 80 else f"{name}(\n" + "".join(f"    {one},\n" for one in parts) + ")"
    )
