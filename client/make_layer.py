"""Builds the zip of a Lambda layer: the client, importable by every Python runtime.

    python client/make_layer.py [pgsluice-layer.zip]

The same files always make the same bytes. What needs SQLAlchemy, pytest or httpx2 is left
out: functions that use those bring them, and the client with them, from the registry.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parent / "pgsluice"
LEFT_OUT = {"aio.py", "sqlalchemy.py", "testing.py"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build(target: Path) -> int:
    """Write the layer to *target*; its size in bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as layer:
        for path in sorted(PACKAGE.iterdir()):
            if path.is_file() and path.name not in LEFT_OUT:
                info = zipfile.ZipInfo(f"python/pgsluice/{path.name}", _EPOCH)
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                layer.writestr(info, path.read_bytes(), compresslevel=9)
    return target.stat().st_size


if __name__ == "__main__":
    made = Path(sys.argv[1] if len(sys.argv) > 1 else "pgsluice-layer.zip")
    sys.stdout.write(f"{made}: {build(made):,} bytes\n")
