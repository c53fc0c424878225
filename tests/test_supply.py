"""No code runs from data, weights or configuration, and nothing asks the network unless it was named."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import atrous
from atrous import yaml_io
from atrous.training.config import Recipe, override
from forks import Forked

PACKAGE = Path(atrous.__file__).parent
ROOT = Path(__file__).parent.parent
FORBIDDEN_IMPORTS = {"marshal", "shelve", "dill", "joblib", "cloudpickle", "code", "codeop", "telnetlib", "xmlrpc"}
NETWORK = {"urllib", "requests", "http", "httpx", "ftplib", "smtplib", "aiohttp", "huggingface_hub"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load",
    "runpy.run_path", "runpy.run_module",
}  # fmt: skip


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    return [(f"{name}:{getattr(node, 'lineno', 0)}", node) for name, tree in trees() for node in ast.walk(tree)]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    yield from ((place, dotted(node.func), node) for place, node in nodes() if isinstance(node, ast.Call))


def keyword(call: ast.Call, name: str) -> object:
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def imports() -> Iterator[tuple[str, str]]:
    for place, node in nodes():
        if isinstance(node, ast.Import):
            yield from ((place, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield place, node.module


def test_the_package_neither_evaluates_text_nor_unpickles() -> None:
    actual = [(place, called) for place, called, _ in calls() if called in FORBIDDEN_CALLS]
    assert actual == []
    assert [(place, module) for place, module in imports() if module.split(".")[0] in FORBIDDEN_IMPORTS] == []
    assert len(list(calls())) > 1_000  # it was looked at


def test_pickles_are_opened_with_weights_only_and_arrays_without_objects() -> None:
    loads = [(place, call) for place, called, call in calls() if called == "torch.load"]
    assert len(loads) >= 2 and all(keyword(call, "weights_only") is True for _, call in loads), loads
    hub = [(place, call) for place, called, call in calls() if called.endswith(("get_state_dict", "_from_url"))]
    assert hub and all(keyword(call, "weights_only") is True for _, call in hub)
    arrays = [(place, call) for place, called, call in calls() if called in ("np.load", "numpy.load")]
    assert all(keyword(call, "allow_pickle") in (None, False) for _, call in arrays)


def test_the_only_library_that_is_loaded_is_the_systems_own() -> None:
    loaded = [call for _, called, call in calls() if called.endswith(("CDLL", "LoadLibrary"))]
    assert {ast.unparse(call.args[0]) for call in loaded} <= {"'libc.so.6'"}


def test_yaml_is_read_by_safe_load() -> None:
    used = {called for _, called, _ in calls() if called.startswith("yaml.") and "load" in called}
    assert used <= {"yaml.safe_load"} and all(
        issubclass(loader, yaml.SafeLoader | yaml.BaseLoader) for loader in (yaml_io._Loader, yaml_io._TextLoader)
    )


def test_no_shell_takes_part() -> None:
    assert [place for place, _, call in calls() if keyword(call, "shell")] == []


def test_nothing_but_the_named_downloads_speaks_to_the_network() -> None:
    speaking = [(place, module) for place, module in imports() if module.split(".")[0] in NETWORK]
    speaking = [(place, module) for place, module in speaking if module != "urllib.parse"]  # which takes text apart
    assert {place.partition(":")[0] for place, _ in speaking} == {"prediction/urls.py"}  # for --allow-urls alone


@pytest.mark.integration
def test_commands_ask_for_no_other_machine(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(override(tiny, {"iterations": 1}).to_yaml())
    run, out, cpu = tmp_path / "run", tmp_path / "out", ["--device", "cpu"]
    lines = [
        ["train", str(tmp_path / "recipe.yaml"), "--data", str(tiny_data), "--out", str(run), "-j", "1", *cpu],
        ["eval", str(run), "--data", str(tiny_data), *cpu],
        ["predict", str(run), str(tiny_data / "images" / "val"), "--out", str(out), *cpu],
        ["data", "check", str(tiny_data)],
        ["models"],
        ["demo", "--out", str(tmp_path / "demo"), *cpu],
    ]
    process = Forked(lines, tmp_path / "said", [("no_network",)])
    assert process.status() == 0, process.output
    assert [event for event in process.events if event[0] == "network"] == []
    assert len(list((out / "masks").iterdir())) == 4


@pytest.mark.integration
def test_the_guard_of_the_network_works(tmp_path: Path) -> None:
    process = Forked((), tmp_path / "said", [("no_network",), ("ask_the_network",)])
    assert process.status() == 1 and ("network", "socket.getaddrinfo") == process.events[0][:2], process.output


def test_dependencies_have_lower_bounds_that_exclude_known_holes() -> None:
    """SECURITY.md says which holes, and why where one is not excluded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)(?:; .+)?", text).groups() for text in project["dependencies"])  # type: ignore
    said = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for name, lowest in bounds.items():
        assert re.search(rf"\| {name} \| {re.escape(lowest)} \|", said), f"SECURITY.md has no row of {name} {lowest}"
