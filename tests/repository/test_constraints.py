"""The pinned versions install on every Python that the package is said to work with."""

import re
from importlib.metadata import PackageNotFoundError, metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.support.running import ROOT

PYTHONS = re.findall(
    r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
)
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("python", PYTHONS)
def test_a_pin_installs_where_its_marker_holds(python):
    """A release that dropped a Python needs another pin there; the installed ones say so."""
    dropped = []
    for pin in PINS:
        if pin.marker and not pin.marker.evaluate({"python_version": python}):
            continue
        try:
            installed = metadata(pin.name)
        except PackageNotFoundError:
            continue
        needs = installed["Requires-Python"] or ""
        if installed["Version"] in pin.specifier and f"{python}.99" not in SpecifierSet(needs):
            dropped.append(f"{pin} needs Python {needs}")
    assert not dropped
