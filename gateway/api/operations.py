"""Endpoints for people and machines that run the gateway: health, metrics, documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..engine.targets import Target, Targets
from .wire import NO_TIMING

_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pgsluice API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{background:#8881;padding:1rem;overflow:auto;border-radius:.4rem}
h2{margin-top:2rem}summary{cursor:pointer}
.m{display:inline-block;min-width:4.5rem;font-weight:600}
</style></head><body><h1>pgsluice API</h1>
<p>The formal description is <a href="openapi.yaml">openapi.yaml</a>.</p>
__BODY__
</body></html>
"""


def _read_document() -> bytes:
    packaged = resources.files("gateway").joinpath("openapi.yaml")
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parents[2] / "openapi.yaml").read_bytes()


def read_document() -> str:
    """openapi.yaml as text."""
    return _read_document().decode()


def target_state(target: Target, idempotency: str) -> dict[str, Any]:
    """A target as `/readyz` shows it.

    Args:
        idempotency: Where it remembers keys: `database`, `memory` or `unknown` as yet.
    """
    pools = list(target.pools.values())
    down = [pool for pool in pools if pool.healthy is False]
    weakened = sorted({name for pool in pools for name in pool.connector.weakened})
    if idempotency == "memory":
        weakened.append("idempotency: memory")
    state = "paused" if target.admission.paused else "waiting" if down else "ready"
    return {
        "state": state,
        "idempotency": idempotency,
        "connections": target.size,
        "max_connections": target.limit,
        "waiting": target.admission.waiting,
        "weakened": weakened,
    }


def public(
    targets: Targets,
    draining: Callable[[], bool],
    docs: Callable[[], str],
    idempotency: Callable[[Target], str],
) -> Starlette:
    """What anybody may ask without credentials."""
    document = _read_document()

    async def livez(request: Request) -> Response:
        return _said(b'{"status":"alive"}', "application/json")

    async def readyz(request: Request) -> Response:
        state = {
            "status": "draining" if draining() else "ready",
            "targets": {
                name: target_state(each, idempotency(each))
                for name, each in targets.by_name.items()
            },
        }
        return _said(orjson.dumps(state), "application/json", 503 if draining() else 200)

    async def openapi(request: Request) -> Response:
        return _said(document, "application/yaml")

    async def page(request: Request) -> Response:
        return _said(_DOCS.replace("__BODY__", docs()).encode(), "text/html; charset=utf-8")

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/openapi.yaml", openapi),
            Route("/docs", page),
        ]
    )


def _said(body: bytes, media_type: str, status: int = 200) -> Response:
    return Response(body, status, {"server-timing": NO_TIMING.decode()}, media_type)


def admin(render: Callable[[], bytes], targets: Targets) -> Starlette:
    """The admin listener."""

    async def metrics(request: Request) -> Response:
        return Response(render(), media_type="text/plain; version=0.0.4")

    async def livez(request: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    async def pause(request: Request) -> Response:
        target = targets.by_name.get(request.path_params["name"])
        if target is None:
            return _told({"error": "there is no target of that name"}, 404)
        try:
            patience = float(request.query_params.get("timeout", "30"))
        except ValueError:
            return _told({"error": "timeout is a number of seconds"}, 400)
        quiet = await target.pause(min(max(patience, 0.0), 3600.0))
        return _told({**_pausing(target), "quiet": quiet}, 200 if quiet else 202)

    async def resume(request: Request) -> Response:
        target = targets.by_name.get(request.path_params["name"])
        if target is None:
            return _told({"error": "there is no target of that name"}, 404)
        target.resume()
        return _told(_pausing(target), 200)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/livez", livez),
            Route("/targets/{name}/pause", pause, methods=["POST"]),
            Route("/targets/{name}/resume", resume, methods=["POST"]),
        ]
    )


def _pausing(target: Target) -> dict[str, Any]:
    return {
        "target": target.name,
        "state": "paused" if target.admission.paused else "running",
        "running": target.admission.in_use,
        "waiting": target.admission.waiting,
    }


def _told(body: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


PUBLIC_PATHS: Iterable[str] = frozenset({"/livez", "/readyz", "/openapi.yaml", "/docs"})
"""Served by Starlette; everything else is a dialect's."""
