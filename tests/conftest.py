"""What all tests share: a home of their own, one thread per worker, and the gate to the tests on real data."""

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers on two cores, each with two threads, take turns. Before torch or numpy is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_REAL_DATA = os.environ.get("MEDCLR_TEST_DATA")


def pytest_configure(config: pytest.Config) -> None:
    if _REAL_DATA and not any(path.is_dir() for path in Path(_REAL_DATA).glob("*")):
        # Otherwise a mistyped folder would look like a suite that passes.
        raise pytest.UsageError(f"MEDCLR_TEST_DATA={_REAL_DATA}: no data sets there")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    real = Path(__file__).parent / "real"
    for item in items:
        if real in item.path.parents:
            item.add_marker(pytest.mark.real)
            if not _REAL_DATA:
                item.add_marker(pytest.mark.skip(reason="MEDCLR_TEST_DATA names no folder of real data sets"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets."""
    assert _REAL_DATA is not None
    return Path(_REAL_DATA)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests, and what they start, away from the key in the user's own configuration folder."""
    with pytest.MonkeyPatch.context() as patch:
        # The caches may stay where they are: matplotlib takes seconds to list the fonts.
        patch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


class _Named(type):
    """Whose every attribute is another like it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm itself. It asks for torchvision, which cannot be imported beside torch's CPU build, to read pictures and to
    detect objects; while it is imported something stands in for that. `make test` installs timm without it."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed; pip install -c constraints.txt --no-deps timm")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            names = ("", "models", "models.feature_extraction", "ops", "ops.misc", "datasets", "transforms")
            for name in (*names, "transforms.functional"):
                module = _StandIn(f"torchvision.{name}".rstrip("."))
                patch.setitem(sys.modules, module.__name__, module)
                parent, _, child = module.__name__.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], child, module)
        return importlib.import_module("timm")
