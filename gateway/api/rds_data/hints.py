"""`typeHint`: strings whose type the caller names, checked and brought to one form.

    >>> hinted("at", "2024-02-29T23:30:00.5-01:00", "TIMESTAMP")
    Typed(value='2024-03-01 00:30:00.5', type='timestamp')

Accepted are the forms that AWS documents and, beyond them, what programs print: `T`
between date and time, `Z` or an offset (brought to UTC), one to nine digits of fraction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta

from ...core.errors import InvalidParameter
from ...core.model import Typed

_DAY = r"(?P<year>\d{4,6})-(?P<month>\d\d)-(?P<day>\d\d)"
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?P<fraction>\.\d{1,9})?"
_ZONE = r"(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?"
_FLAGS = re.ASCII
_DATE = re.compile(rf"{_DAY}(?:[T ]00:00:00(?:\.0{{1,9}})?Z?)?(?P<era> BC)?", _FLAGS)
_TIME = re.compile(_CLOCK + _ZONE, _FLAGS)
_TIMESTAMP = re.compile(rf"{_DAY}[T ]{_CLOCK}{_ZONE}(?P<era> BC)?", _FLAGS)
_INFINITE = ("infinity", "-infinity")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?|NaN|-?Infinity", _FLAGS)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _offset(zone: str | None) -> timedelta:
    """East of UTC."""
    if zone is None or zone == "Z":
        return timedelta()
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 15 or minutes > 59:
        raise ValueError("no such offset")
    size = timedelta(hours=hours, minutes=minutes)
    return -size if zone[0] == "-" else size


def _clock(match: re.Match[str]) -> timedelta:
    """Time since midnight without the fraction; 24:00:00 is PostgreSQL's end of a day."""
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    end_of_day = hour == 24 and not (minute or second or (match["fraction"] or "").strip(".0"))
    if (hour > 23 and not end_of_day) or minute > 59 or second > 59:
        raise ValueError("no such time")
    return timedelta(hours=hour, minutes=minute, seconds=second)


def _check_day(match: re.Match[str]) -> None:
    year, era = int(match["year"]), match["era"]
    if era is not None or year > 9999:
        # Beyond Python's calendar. A year of the same place in the cycle of 400 has the
        # same days; 1 BC is year 0 of that calendar.
        year = (1 - year if era else year) % 400 + 2000
    date(year, int(match["month"]), int(match["day"]))


def _date_text(text: str) -> str:
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("not a date")
    _check_day(match)
    return f"{match['year']}-{match['month']}-{match['day']}{match['era'] or ''}"


def _time_text(text: str) -> str:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not a time")
    clock, offset, fraction = _clock(match), _offset(match["zone"]), match["fraction"] or ""
    if not offset:
        return text.removesuffix(match["zone"] or "")
    seconds = int((clock - offset).total_seconds()) % 86400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{fraction}"


def _timestamp_text(text: str) -> str:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError("not a timestamp")
    _check_day(match)
    clock, offset, fraction = _clock(match), _offset(match["zone"]), match["fraction"] or ""
    if not offset:
        day = f"{match['year']}-{match['month']}-{match['day']}"
        time = f"{match['hour']}:{match['minute']}:{match['second']}{fraction}"
        return f"{day} {time}{match['era'] or ''}"
    if match["era"]:
        raise ValueError("an offset before the common era")
    midnight = datetime(int(match["year"]), int(match["month"]), int(match["day"]))
    return (midnight + clock - offset).isoformat(" ") + fraction


def _decimal_text(text: str) -> str:
    if not _DECIMAL.fullmatch(text):
        raise ValueError("not a number")
    return text


def _uuid_text(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError("not a UUID")
    return text


def _json_text(text: str) -> str:
    # PostgreSQL reads it next and names what is wrong with it better than we could.
    return text


_Reader = Callable[[str], str]
# PostgreSQL type, what the value is called in errors, what checks and normalises it.
HINTS: dict[str, tuple[str, str, _Reader]] = {
    "JSON": ("jsonb", "JSON", _json_text),
    "UUID": ("uuid", "UUID", _uuid_text),
    "TIMESTAMP": ("timestamp", "date or time", _timestamp_text),
    "DATE": ("date", "date or time", _date_text),
    "TIME": ("time", "date or time", _time_text),
    "DECIMAL": ("numeric", "number", _decimal_text),
}


def hinted(name: str, text: str, hint: str) -> Typed:
    """A string whose type the caller names, for wherever PostgreSQL infers none of its own."""
    type_name, called, read = HINTS[hint]
    if text in _INFINITE and hint in ("DATE", "TIMESTAMP"):
        return Typed(text, type_name)
    try:
        return Typed(read(text), type_name)
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(f'Cannot parse {called} "{text[:64]}"', field=name) from error
