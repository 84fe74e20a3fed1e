"""A gateway asked from the command line: rows out, rows in.

    PGSLUICE_URL=http://127.0.0.1:8080 PGSLUICE_TOKEN=… pgsluice query "select 1"

Both are streams: nothing is held but the rows by which the columns of a table get
their widths, and the piece of a file that is being sent.
"""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

import click

_PIECE = 64 * 1024
_MEASURED = 1_000
"""Rows that the widths of a table are taken from."""
_TIMEOUT = 90.0
"""Seconds without a byte; the gateway gives up before."""
_LINES = {".ndjson", ".jsonl"}


class CannotAsk(click.ClickException):
    """One line that says what went wrong."""


class Remote:
    """One gateway, one request at a time."""

    def __init__(self, url: str, token: str | None, cafile: str | None = None) -> None:
        # Imported late: the settings bring cryptography with them.
        from ..settings import is_loopback

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CannotAsk("the URL must begin with https:// (or http:// on loopback)")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise CannotAsk("will not send credentials in the clear; use https://")
        if not token:
            raise CannotAsk("PGSLUICE_TOKEN is not set; `pgsluice token` makes one")
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=cafile)
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=_TIMEOUT, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=_TIMEOUT
            )
        self._prefix = parts.path.rstrip("/")
        self._token = token

    @contextmanager
    def post(
        self, path: str, body: Iterable[bytes] | bytes, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a POST, if it is a good one.

        Raises:
            CannotAsk: It is an error, it breaks off, or there is none.
        """
        headers = {"Authorization": f"Bearer {self._token}", **headers}
        chunked = not isinstance(body, bytes) and "Content-Length" not in headers
        try:
            # Refused before all of it was sent, it is the answer that says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.request(
                    "POST", self._prefix + path, body, headers, encode_chunked=chunked
                )
            answer = self._connection.getresponse()
            if answer.status >= 300:
                raise _refused(answer)
            yield answer
        except http.client.IncompleteRead:
            raise CannotAsk("the answer broke off; what was printed is not all of it") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise CannotAsk(f"the gateway does not answer: {reason}") from error
        finally:
            self._connection.close()


def _refused(answer: http.client.HTTPResponse) -> CannotAsk:
    try:
        problem = json.loads(answer.read(1 << 20))
        return _problem(problem)
    except (ValueError, KeyError, TypeError):
        return CannotAsk(f"the answer is {answer.status} {answer.reason}")


def _problem(problem: Mapping[str, Any]) -> CannotAsk:
    hint = f" ({problem['hint']})" if "hint" in problem else ""
    return CannotAsk(f"{problem['code']}: {problem['detail']}{hint}")


# ---- query -----------------------------------------------------------------------------------


def run_query(
    remote: Remote, sql: str, form: str, parameters: Mapping[str, str], out: BinaryIO
) -> None:
    """Print the rows of *sql* as *form*: `csv`, `json` or `table`."""
    body: dict[str, Any] = {"sql": sql}
    if parameters:
        body["parameters"] = dict(parameters)
    accept, write = _FORMS[form]
    headers = {"Accept": accept, "Content-Type": "application/json"}
    with remote.post("/execute", json.dumps(body).encode(), headers) as answer:
        write(answer, out)
        out.flush()


def _pass_on(answer: IO[bytes], out: BinaryIO) -> None:
    while piece := answer.read(_PIECE):
        out.write(piece)


def _lines(answer: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends. Not `for line in answer`, which takes a broken one for
    the last."""
    begun = b""
    while piece := answer.read(_PIECE):
        *whole, begun = (begun + piece).split(b"\n")
        yield from whole
    if begun:
        yield begun


def _write_array(answer: IO[bytes], out: BinaryIO) -> None:
    """Lines of objects as one array; it is closed only if all of them came."""
    before = b"[\n"
    for line in _lines(answer):
        out.write(before + line)
        before = b",\n"
    out.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def _write_table(answer: IO[bytes], out: BinaryIO) -> None:
    frames = map(json.loads, _lines(answer))
    columns = [column["name"] for column in next(frames)["columns"]]
    end: dict[str, Any] = {}

    def rows() -> Iterator[list[str]]:
        for frame in frames:
            if isinstance(frame, dict):
                if "error" in frame:
                    raise _problem(frame["error"])
                end.update(frame["end"])
                return
            yield [_cell(value) for value in frame]

    every = rows()
    first = list(itertools.islice(every, _MEASURED))
    if columns:
        widths = [max(map(_width, column)) for column in zip(columns, *first, strict=True)]
        out.write(_row(columns, widths))
        out.write(("-+-".join("-" * width for width in widths) + "\n").encode())
        for row in itertools.chain(first, every):
            out.write(_row(row, widths))
    else:
        for _ in itertools.chain(first, every):
            pass
    if not end:
        raise CannotAsk("the answer broke off; what was printed is not all of it")
    count = end["row_count"]
    more = ", and more" if end.get("truncated") else ""
    said = f"{count} row{'' if count == 1 else 's'}{more}" if columns else f"{count}"
    out.write(f"({said})\n".encode() if columns else f"{end['command']} {said}\n".encode())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    # Also what a terminal would obey.
    return character.encode("unicode_escape").decode()


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def _row(cells: list[str], widths: list[int]) -> bytes:
    padded = [
        cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)
    ]
    return (" | ".join(padded).rstrip() + "\n").encode()


_FORMS: dict[str, tuple[str, Callable[[Any, BinaryIO], None]]] = {
    "csv": ("text/csv", _pass_on),
    "json": ("application/x-ndjson", _write_array),
    "table": ("application/x-ndjson; frames=1", _write_table),
}


# ---- copy ------------------------------------------------------------------------------------


def run_copy(remote: Remote, table: str, file: str, columns: str | None, header: bool) -> int:
    """Send *file*, `-` for standard input, into *table*; return how many rows it had."""
    lines = Path(file).suffix.lower() in _LINES
    kind = "application/x-ndjson" if lines else "text/csv"
    if not header and not lines:
        kind += "; header=absent"
    path = "/copy/" + quote(table, safe="")
    if columns is not None:
        path += "?" + urlencode({"columns": columns})
    headers = {"Content-Type": kind}
    with _opened(file) as (source, size):
        if size is not None:
            headers["Content-Length"] = str(size)
        else:
            headers["Transfer-Encoding"] = "chunked"
        with remote.post(path, _pieces(source, size), headers) as answer:
            count: int = json.loads(answer.read())["row_count"]
    return count


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if file == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with Path(file).open("rb") as source:
            size = source.seek(0, 2) if source.seekable() else None
            if size is not None:
                source.seek(0)
            yield source, size
    except FileNotFoundError:
        raise CannotAsk(f"{file} cannot be read: there is no such file") from None


def _pieces(source: BinaryIO, size: int | None) -> Iterator[bytes]:
    """*source* piece by piece, with a bar on a terminal that shows how far it is."""
    if not sys.stderr.isatty():
        while piece := source.read(_PIECE):
            yield piece
        return
    with click.progressbar(length=size or 0, label="copy", file=sys.stderr) as bar:
        while piece := source.read(_PIECE):
            yield piece
            bar.update(len(piece))


# ---- commands --------------------------------------------------------------------------------

_GATEWAY: tuple[Callable[[Any], Any], ...] = (
    click.option("--url", envvar="PGSLUICE_URL", required=True, help="Of the gateway."),
    click.option("--token", envvar="PGSLUICE_TOKEN", help="A bearer token."),
    click.option("--cafile", envvar="PGSLUICE_CAFILE", help="Certificates to trust."),
)


def _at_gateway(command: Callable[..., None]) -> Callable[..., None]:
    for add in reversed(_GATEWAY):
        command = add(command)
    return command


@click.command()
@_at_gateway
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMS)),
    default="table",
    show_default=True,
)
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value for :NAME, in PostgreSQL's input syntax.",
)
@click.argument("sql")
def query(
    url: str,
    token: str | None,
    cafile: str | None,
    form: str,
    parameters: tuple[str, ...],
    sql: str,
) -> None:
    """Run one statement on a gateway and print its rows."""
    values = {}
    for each in parameters:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.BadParameter("must be NAME=VALUE", param_hint="--parameter")
        values[name] = value
    run_query(Remote(url, token, cafile), sql, form, values, sys.stdout.buffer)


@click.command()
@_at_gateway
@click.option("--columns", help="The columns, with commas; else those that the file names.")
@click.option("--no-header", is_flag=True, help="The CSV begins with its first row.")
@click.argument("table")
@click.argument("file")
def copy(
    url: str,
    token: str | None,
    cafile: str | None,
    columns: str | None,
    no_header: bool,
    table: str,
    file: str,
) -> None:
    """Put the rows of FILE into TABLE through a gateway: all of them, or none.

    FILE is CSV, or NDJSON if its name ends in .ndjson or .jsonl; - is standard input.
    """
    count = run_copy(Remote(url, token, cafile), table, file, columns, not no_header)
    click.echo(f"COPY {count}")
