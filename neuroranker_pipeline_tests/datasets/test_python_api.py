from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuroranker_pipeline.datasets.python_api import public_docstrings, stdlib_modules
from neuroranker_pipeline.errors import BadInput

FILES = {
    "__init__.py": '"""The package."""\nfrom ._impl import visible, _hidden\nfrom ._star import *\nraise RuntimeError',
    "_impl.py": '''
def visible():
    """Visible."""
def _hidden():
    """Hidden."""
def not_offered():
    """Not offered."""
''',
    "_star.py": '''
__all__ = ["Thing"]
class Thing:
    """A thing."""
    def use(self):
        """Use it."""
    def _secret(self):
        """Secret."""
    class Inner:
        """Inner."""
def unlisted():
    """Unlisted."""
''',
    "sub/__init__.py": "from .. import visible\nfrom ..public import helper",
    "public.py": 'import os\nfrom ._impl import not_offered\ndef helper():\n    """Helper."""\n',
    "_add_newdocs.py": '''
add_newdoc("pkg._star", "Thing", ("added", """Added."""))
add_newdoc("pkg._star", "Thing", [("_private", """Private."""), ("listed", """Listed.""")])
add_newdoc("pkg.ext", "ufunc", """Ufunc {}.""".format("x"))
''',
    "ext.py": '__all__ = ["listed"]\ndef listed():\n    """Listed."""\n',
    "tests/test_x.py": 'def test_x():\n    """Test."""\n',
    "broken.py": "def (",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, source in FILES.items():
        file = tmp_path / "pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "pkg"


def test_public_names_are_the_shortest_ones_and_nothing_is_imported(package: str) -> None:
    assert public_docstrings(package) == {
        "pkg": "The package.",
        "pkg.visible": "Visible.",
        "pkg.Thing": "A thing.",
        "pkg.Thing.use": "Use it.",
        "pkg.Thing.Inner": "Inner.",
        "pkg.Thing.added": "Added.",
        "pkg.Thing.listed": "Listed.",
        "pkg.sub.helper": "Helper.",
        "pkg.ext.listed": "Listed.",
        "pkg.ext.ufunc": "Ufunc .",
    }
    assert package not in sys.modules


def test_known_objects_of_installed_packages_have_their_public_names() -> None:
    found = public_docstrings("numpy")
    assert "cumulative sum" in found["numpy.cumsum"]
    assert "numpy.ndarray.sort" in found, "C methods are documented through add_newdoc"
    assert not any("._" in name or ".tests" in name for name in found)


def test_single_module_of_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statistics.py").write_text('"""Shadows the standard library."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "statistics.mean" in public_docstrings("statistics")
    assert {"json", "statistics"} <= set(stdlib_modules())
    assert "json.loads" in public_docstrings("json")


@pytest.mark.parametrize("name", ["no_such_package_here", "../etc", "a.b", ""])
def test_missing_package_is_one_clear_error(name: str) -> None:
    with pytest.raises(BadInput, match="not installed here as Python source"):
        public_docstrings(name)
