"""`import pgsluice` costs next to nothing, and stands alone."""

from __future__ import annotations

import ast
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


OPTIONAL = {"_boto3", "aio", "dbapi", "rds", "sqlalchemy", "testing"}
"""Modules that a synchronous client never imports by itself."""
LIMIT = 99_000  # bytes, of less than 100 kB: pip leaves some of its own


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=HOME, check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """What `pip install --no-compile` leaves, but for 300 bytes of its own about that."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_is_as_small_as_the_readme_says(wheel: Path, installed: Path) -> None:
    files = [path for path in installed.rglob("*") if path.is_file()]
    assert {path.relative_to(installed).parts[0] for path in files} == {
        "pgsluice",
        "pgsluice-0.1.0.dist-info",
    }
    assert installed / "pgsluice" / "py.typed" in files
    sizes = {path: path.stat().st_size for path in files}
    ordinary = sum(size for path, size in sizes.items() if path.stem not in OPTIONAL)
    assert wheel.stat().st_size == pytest.approx(stated("to download"), rel=0.02)
    assert sum(sizes.values()) == pytest.approx(stated("installed"), rel=0.02)
    assert ordinary == pytest.approx(stated("of that"), rel=0.02)
    assert ordinary < LIMIT


def test_a_wheel_holds_the_modules_without_what_nobody_is_shown(installed: Path) -> None:
    def bare(path: Path) -> str:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                kept = [each for each in body if not is_text(each)]
                node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        return ast.dump(tree)

    def is_text(node: ast.AST) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    for path in (HOME / "pgsluice").glob("*.py"):
        copy = installed / "pgsluice" / path.name
        assert bare(copy) == bare(path), path.name
        lines = copy.read_text(encoding="utf-8").splitlines()
        source = path.read_text(encoding="utf-8").splitlines()
        for mine, theirs in zip(lines, source, strict=True):
            assert mine.strip() in ("", "...", theirs.strip())


HELP = """
import pgsluice, pgsluice.aio, pgsluice.dbapi, pgsluice.rds, inspect, json
found = {}
named = [(n, getattr(home, n)) for home in (pgsluice, pgsluice.dbapi) for n in home.__all__]
for name, kind in [*named, ("rds", pgsluice.rds.RdsDataClient)]:
    if callable(kind):
        found[name] = inspect.getdoc(kind)
    for part in dir(kind) if isinstance(kind, type) else ():
        if not part.startswith("_"):
            found[f"{name}.{part}"] = inspect.getdoc(getattr(kind, part))
print(json.dumps(found))
"""


def test_help_says_the_same_of_what_is_installed(installed: Path) -> None:
    said = []
    for home in (HOME, installed):
        script = f"import sys; sys.path.insert(0, {str(home)!r})\n{HELP}"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
        )
        said.append(json.loads(done.stdout))
    assert said[0] == said[1]
    assert "PostgreSQL refuses a write then" in said[1]["AsyncClient.execute"]
    assert len(said[1]) > 200


def test_a_function_loads_nothing_that_it_does_not_use() -> None:
    code = "import pgsluice; db = pgsluice.connect('http://127.0.0.1:9', token='t')\n"
    code += "try: db.execute('select 1', timeout=5)\nexcept pgsluice.ConnectionFailed: pass"
    loaded = modules_after(code)
    own = {name.partition(".")[2] for name in loaded if name.startswith("pgsluice.")}
    assert not (OPTIONAL | {"_lambda", "_signing"}) & own
    assert not {"encodings.idna", "dataclasses", "inspect", "decimal", "asyncio"} & loaded


def test_the_layer_holds_the_client_and_runs(tmp_path: Path) -> None:
    layer = tmp_path / "layer.zip"
    script = str(HOME / "make_layer.py")
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.stat().st_size == pytest.approx(stated("in a layer"), rel=0.02)
    code = f"import sys; sys.path.insert(0, {str(layer) + '/python'!r})\n"
    code += "import pgsluice, pgsluice.dbapi; print(pgsluice.connect('http://h'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<pgsluice.Client h>\n"
    first = layer.read_bytes()
    subprocess.run([sys.executable, script, str(layer)], check=True, capture_output=True)
    assert layer.read_bytes() == first


def test_a_compiled_layer_is_not_compiled_again(tmp_path: Path) -> None:
    layer = tmp_path / "layer.zip"
    script = str(HOME / "make_layer.py")
    subprocess.run(
        [sys.executable, script, "--compiled", str(layer)], check=True, capture_output=True
    )
    assert layer.stat().st_size == pytest.approx(stated("compiled"), rel=0.1)
    with zipfile.ZipFile(layer) as archive:
        archive.extractall(tmp_path)
    for path in (tmp_path / "python" / "pgsluice").glob("*.py"):
        path.write_text("raise SystemExit('compiled anew')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'python')!r})\n"
    code += "import pgsluice, pgsluice.dbapi; print(pgsluice.connect('http://h'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<pgsluice.Client h>\n"
