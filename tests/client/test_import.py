"""`import pgsluice` costs next to nothing, and stands alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pgsluice
import pytest

HOME = Path(pgsluice.__file__).parents[1]
README = HOME / "README.md"
COSTLY = {
    "asyncio",
    "dataclasses",
    "datetime",
    "decimal",
    "email",
    "hashlib",
    "http.client",
    "inspect",
    "random",
    "socket",
    "ssl",
    "uuid",
}


def modules_after(code: str) -> set[str]:
    """Names of the modules that a fresh, isolated interpreter holds after *code*."""
    script = f"import sys; sys.path.insert(0, {str(HOME)!r})\n{code}\n"
    script += "import json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_import_alone_loads_nothing_of_the_package_and_nothing_costly() -> None:
    loaded = modules_after("import pgsluice")
    assert not loaded & COSTLY
    assert {name for name in loaded if name.startswith("pgsluice")} == {"pgsluice"}
    assert "typing" not in loaded


def test_a_client_that_has_sent_nothing_has_loaded_nothing_costly() -> None:
    assert not modules_after("import pgsluice; pgsluice.connect('http://h')") & COSTLY


def test_everything_it_loads_is_its_own_or_the_standard_library() -> None:
    code = "import pgsluice\nfor name in pgsluice.__all__: getattr(pgsluice, name)\n"
    code += "import pgsluice._signing, http.client"
    roots = {name.partition(".")[0] for name in modules_after(code)}
    assert roots - set(sys.stdlib_module_names) == {"pgsluice", "__main__"} - set(
        sys.stdlib_module_names
    )


@pytest.mark.parametrize("name", pgsluice.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(pgsluice, name) is getattr(pgsluice, name)
    assert name in dir(pgsluice)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pgsluice.nonsense  # noqa: B018


def stated(name: str) -> int:
    """Bytes, as the README says them."""
    found = re.search(rf"(\d+) kB {name}", " ".join(README.read_text(encoding="utf-8").split()))
    assert found, name
    return int(found[1]) * 1000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=HOME, check=True, capture_output=True)
    return next(folder.iterdir())


def test_it_is_as_small_as_the_readme_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        installed = sum(each.file_size for each in archive.infolist())
    assert {name.partition("/")[0] for name in names} == {"pgsluice", "pgsluice-0.1.0.dist-info"}
    assert "pgsluice/py.typed" in names
    assert wheel.stat().st_size == pytest.approx(stated("to download"), rel=0.05)
    assert installed == pytest.approx(stated("installed"), rel=0.05)
    assert wheel.stat().st_size < 60_000
    assert installed < 180_000


def test_a_function_loads_little_of_it() -> None:
    code = "import pgsluice; db = pgsluice.connect('http://127.0.0.1:9', token='t')\n"
    code += "try: db.execute('select 1', timeout=5)\nexcept pgsluice.ConnectionFailed: pass"
    package = HOME / "pgsluice"
    loaded = [name.partition(".")[2] for name in modules_after(code) if "pgsluice." in name]
    assert not {"aio", "dbapi", "rds", "sqlalchemy", "testing"} & set(loaded)
    size = sum((package / f"{name}.py").stat().st_size for name in [*loaded, "__init__"])
    assert size == pytest.approx(stated("of source are read"), rel=0.05)
    assert size < 110_000


def test_the_layer_holds_the_client_and_runs(tmp_path: Path) -> None:
    layer = tmp_path / "layer.zip"
    script = str(HOME / "make_layer.py")
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.stat().st_size == pytest.approx(stated("in a layer"), rel=0.05)
    assert layer.stat().st_size < 45_000
    code = f"import sys; sys.path.insert(0, {str(layer) + '/python'!r})\n"
    code += "import pgsluice, pgsluice.dbapi; print(pgsluice.connect('http://h'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<pgsluice.Client h>\n"
    first = layer.read_bytes()
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.read_bytes() == first
