"""What a wheel and a source distribution hold, built here as an installer builds them."""

from __future__ import annotations

import tarfile
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
KINDS = {".py", ".typed", ".md", ".json", ".safetensors", ".html", ".css", ".js", ".svg", ".LICENSE"}

builders = pytest.importorskip("hatchling.builders", reason='hatchling is not installed: pip install -e ".[dev]"')


def sources() -> set[str]:
    """The package's files of kinds that belong there; caches of Python and numba are none."""
    return {path.relative_to(SOURCES).as_posix() for path in SOURCES.glob("elastikv/**/*") if path.suffix in KINDS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with ZipFile(path) as file:
        yield file


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert {"elastikv/py.typed", "elastikv/demo/model.safetensors", "elastikv/server/page/static/index.html"} <= names
    assert wheel.read("elastikv/demo/model.safetensors") == (SOURCES / "elastikv/demo/model.safetensors").read_bytes()


def test_the_wheel_says_what_it_is(wheel):
    about = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(about["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert b"elastikv = elastikv.cli.main:main" in wheel.read(about["entry_points.txt"])
    metadata = message_from_bytes(wheel.read(about["METADATA"]))
    assert metadata["License-Expression"].startswith("MIT AND ")  # of the page's libraries
    assert {"llama-cpp", "ray", "dev"} == set(metadata.get_all("Provides-Extra"))


def test_the_wheel_is_for_any_system(wheel):
    assert wheel.filename.endswith("-py3-none-any.whl")
    assert sum(entry.compress_size for entry in wheel.infolist()) < 10 << 20


def test_the_source_distribution_holds_what_a_wheel_is_built_from(tmp_path):
    from hatchling.builders.sdist import SdistBuilder

    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    beside = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", "PKG-INFO"}
    assert names == beside | {f"src/{name}" for name in sources()}
