"""Builds the zip of a Lambda layer: the client, importable by every Python runtime.

    python client/make_layer.py [--compiled] [pgsluice-layer.zip]

`--compiled` adds the bytecode for the version of Python that runs this, which a cold start
then need not make; other versions still use the source.

The same files always make the same bytes; the modules are as `slim` leaves them. What needs
SQLAlchemy, pytest or httpx2 is left out: functions that use those bring them, and the
client with them, from the registry.
"""

from __future__ import annotations

import argparse
import py_compile
import sys
import tempfile
import zipfile
from pathlib import Path

from slim import slim

PACKAGE = Path(__file__).parent / "pgsluice"
LEFT_OUT = {"aio.py", "sqlalchemy.py", "testing.py"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build(target: Path, *, compiled: bool = False) -> int:
    """Write the layer to *target*; its size in bytes."""
    with zipfile.ZipFile(target, "w") as layer:
        for path in sorted(PACKAGE.iterdir()):
            if not path.is_file() or path.name in LEFT_OUT:
                continue
            text = slim(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
            _add(layer, path.name, text.encode())
            if compiled and path.suffix == ".py":
                tag = sys.implementation.cache_tag
                _add(layer, f"__pycache__/{path.stem}.{tag}.pyc", _bytecode(path.name, text))
    return target.stat().st_size


def _add(layer: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(f"python/pgsluice/{name}", _EPOCH)
    info.external_attr = 0o644 << 16
    layer.writestr(info, data, zipfile.ZIP_DEFLATED, compresslevel=9)


def _bytecode(name: str, text: str) -> bytes:
    with tempfile.TemporaryDirectory() as home:
        source, made = Path(home, name), Path(home, "made")
        source.write_text(text, encoding="utf-8")
        # Without a look at the source's time, which a zip does not keep.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        where = f"/opt/python/pgsluice/{name}"
        py_compile.compile(str(source), str(made), where, True, invalidation_mode=mode)
        return made.read_bytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the zip of a Lambda layer.")
    parser.add_argument("target", type=Path, nargs="?", default=Path("pgsluice-layer.zip"))
    parser.add_argument("--compiled", action="store_true", help="for this version of Python")
    given = parser.parse_args()
    size = build(given.target, compiled=given.compiled)
    sys.stdout.write(f"{given.target}: {size:,} bytes\n")
