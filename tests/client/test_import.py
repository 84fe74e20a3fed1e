"""`import pgsluice` costs next to nothing, and stands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pgsluice
import pytest

HOME = Path(pgsluice.__file__).parents[1]
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


def test_it_stays_a_thin_client() -> None:
    code = "import pgsluice; db = pgsluice.connect('http://127.0.0.1:9', token='t')\n"
    code += "try: db.execute('select 1', timeout=5)\nexcept pgsluice.ConnectionFailed: pass"
    package = HOME / "pgsluice"
    loaded = [name for name in modules_after(code) if name.startswith("pgsluice.")]
    files = [package / f"{name.partition('.')[2]}.py" for name in loaded] + [
        package / "__init__.py"
    ]
    # What a function that reads and writes needs; the shells around it are a few files more.
    assert sum(path.stat().st_size for path in files) < 100 << 10
    assert sum(path.stat().st_size for path in package.glob("*.py")) < 160 << 10
    assert (package / "py.typed").exists()


def test_the_layer_holds_the_client_and_runs(tmp_path: Path) -> None:
    layer = tmp_path / "layer.zip"
    script = str(HOME / "make_layer.py")
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.stat().st_size < 50 << 10
    code = f"import sys; sys.path.insert(0, {str(layer) + '/python'!r})\n"
    code += "import pgsluice, pgsluice.dbapi; print(pgsluice.connect('http://h'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<pgsluice.Client h>\n"
    first = layer.read_bytes()
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.read_bytes() == first
