"""OpenVINO without AMX in the tests, too, though benchmarks run it as its users do."""

import importlib.util

import pytest

from atrous.models.exported import openvino_runtime


@pytest.fixture(scope="session", autouse=True)
def _openvino_without_amx() -> None:
    """Other tests of this process run networks in int8, with which OpenVINO ends it where it has used AMX."""
    if importlib.util.find_spec("openvino"):
        openvino_runtime()
