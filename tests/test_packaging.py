"""How it reaches others: as a package with types, as an archive of two files, as pinned requirements."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


def succeeded(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which `pip install .` has put the package, from a copy of the tracked files, without a network."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "inventory_manager.py", "main.py", "py.typed"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    succeeded(*pip, "--target", folder / "site", ".", cwd=source)
    return folder / "site"


def test_nothing_else_on_the_path(installed: Path) -> None:
    """`pip install .` brings inventory_manager, with its types, and nothing else that could be imported."""
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"inventory_manager"}
    files = {path.name for path in (installed / "inventory_manager").iterdir() if path.name != "__pycache__"}
    assert files == {"__init__.py", "py.typed"}
    assert (installed / "inventory_manager/__init__.py").read_text() == (
        REPOSITORY / "inventory_manager.py"
    ).read_text()


def test_metadata(installed: Path) -> None:
    """The package's version is the module's; only boto3 and botocore are behind it."""
    (info,) = installed.glob("*.dist-info")
    metadata = (info / "METADATA").read_text()
    found = succeeded(
        sys.executable, "-c", "import inventory_manager; print(inventory_manager.__version__)", cwd=installed
    )
    assert f"\nVersion: {found}" in metadata
    required = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra)", metadata, re.MULTILINE)
    assert sorted(required) == ["boto3", "botocore"]


def test_types_reach_the_user(installed: Path, tmp_path: Path) -> None:
    """Another project's mypy sees the types: it accepts what is right and finds what is wrong."""
    (tmp_path / "project.py").write_text(
        "import boto3\n"
        "from inventory_manager import InventoryManager\n"
        "for instance in InventoryManager(boto3.Session()).instances():\n"
        "    reveal_type(instance.launch_time)\n"
        "    instance.no_such_field\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "project.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 'Revealed type is "datetime.datetime | None"' in done.stdout
    assert '"Instance" has no attribute "no_such_field"' in done.stdout
    assert "Found 1 error" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("zip") is None, reason="needs make and zip")
def test_the_archive(tmp_path: Path) -> None:
    """make clustermanager.zip packs what runs on the host."""
    modules = ["inventory_manager.py", "main.py", "accounts.py", "history.py", "report.py"]
    for name in ("Makefile", *modules):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    succeeded("make", "clustermanager.zip", cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / "clustermanager.zip") as archive:
        assert archive.namelist() == modules


def pinned(path: Path) -> dict[str, str]:
    """Name and version of each requirement that this Python would install."""
    packaging = pytest.importorskip("packaging.requirements")
    found = {}
    for entry in re.split(r"\n(?=\w)", path.read_text().replace("\\\n", " ")):
        if not re.match(r"\w", entry):
            continue
        assert "--hash=sha256:" in entry, entry
        requirement = packaging.Requirement(re.sub(r"\s(--hash|#).*", "", entry, flags=re.DOTALL))
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[requirement.name] = specifier.version
    return found


def test_requirements_are_pinned() -> None:
    """Each requirement is one version with its hashes; the tests run on what the host installs."""
    host, tests = pinned(REPOSITORY / "requirements.txt"), pinned(REPOSITORY / "tests/requirements.txt")
    assert {"boto3", "botocore", "rich"} <= host.keys()
    assert "moto" not in host
    assert {name: tests[name] for name in host} == host
    assert version("botocore") == tests["botocore"]
