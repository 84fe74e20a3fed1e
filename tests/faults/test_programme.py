"""The fault programme in its short form; `make test-faults` runs the long one."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.faults.__main__ import table, verdict
from tests.faults.checker import Report, Said, Stored, check, in_flight
from tests.faults.faults import FAULTS, schedule
from tests.faults.operations import plan
from tests.faults.rounds import Round, each, rounds

SEED = 20_261_121


@pytest.mark.slow
@pytest.mark.process
def test_under_every_fault_nothing_is_lost_doubled_or_misreported_and_the_naive_one_doubles(
    capsys: Any, record_property: Any
) -> None:
    planned = [Round("pgsluice", 1_500, SEED, 1, 1), Round("naive", 2_000, SEED, 1, 1)]
    reports = {what.subject: came for what, came in each(planned, 2, float("inf"))}
    ours, naive = reports["pgsluice"], reports["naive"]
    # The programme itself must not be what is missing here.
    assert isinstance(ours, Report) and isinstance(naive, Report), reports
    record_property("figures", json.dumps([ours.figures(), naive.figures()]))
    with capsys.disabled():
        sys.stdout.write(f"\n{table([ours, naive])}\n")
    assert set(ours.by_fault) == set(FAULTS)
    assert set(ours.by_sender) == {"client", "js", "boto3"}
    assert all(count > 100 for count in ours.by_sender.values())
    assert ours.in_flight > 100
    assert ours.flaws == []
    assert naive.lost or naive.doubled, "the programme is too mild"


def test_a_run_is_made_of_rounds_that_take_turns_and_can_be_repeated_alone() -> None:
    planned = rounds(25_000, 7, ["pgsluice", "naive"], 10_000)
    assert [(each.subject, each.operations, each.seed) for each in planned] == [
        ("pgsluice", 10_000, 7),
        ("naive", 3_000, 7),
        ("pgsluice", 10_000, 8),
        ("pgsluice", 5_000, 9),
    ]
    assert planned[2].again == (
        "python -m tests.faults --operations 10000 --round 10000 --seed 8 --subjects pgsluice"
    )


@pytest.mark.parametrize(
    ("reports", "broken", "wrong"),
    [
        ([Report("pgsluice", 1), Report("naive", 1, doubled=["a"])], [], 0),
        ([Report("pgsluice", 1), Report("naive", 1, lost=["a"])], [], 0),
        ([Report("pgsluice", 1, lost=["a"])], [], 1),
        ([Report("pgsluice", 1, unresolved=["a"])], [], 1),
        ([Report("pgsluice", 1), Report("naive", 1, wrong=["a"])], [], 1),
        ([Report("pgsluice", 1)], ["it stood still"], 1),
    ],
    ids=["doubled by naive", "lost by naive", "lost by us", "unknown", "too mild", "broke off"],
)
def test_a_flaw_of_ours_and_an_unharmed_naive_one_end_the_run_with_an_error(
    reports: list[Report], broken: list[str], wrong: int
) -> None:
    assert len(verdict(reports, broken)) == wrong


def test_a_seed_stands_for_the_same_operations_and_the_same_faults() -> None:
    assert plan(200, 7) == plan(200, 7)
    assert plan(200, 7) != plan(200, 8)
    assert schedule(50, 7) == schedule(50, 7)
    assert schedule(50, 7) != schedule(50, 8)
    assert set(schedule(len(FAULTS), 7)) == set(FAULTS)


STORED = {
    "nothing": [],
    "once": [0],
    "twice": [0, 0],
}


@pytest.mark.parametrize(
    ("said", "asked", "stored", "flaw"),
    [
        ("acknowledged", None, "once", None),
        ("acknowledged", None, "nothing", "lost"),
        ("acknowledged", None, "twice", "doubled"),
        ("not_executed", None, "nothing", None),
        ("not_executed", None, "once", "wrong"),
        ("committed", None, "once", None),
        ("committed", None, "nothing", "wrong"),
        ("unknown", "committed", "once", None),
        ("unknown", "committed", "nothing", "wrong"),
        ("unknown", "not_executed", "nothing", None),
        ("unknown", "not_executed", "once", "wrong"),
        ("unknown", "unknown", "once", "unresolved"),
        ("unknown", None, "nothing", "unresolved"),
    ],
)
def test_the_checker_finds_what_does_not_agree(
    said: str, asked: str | None, stored: str, flaw: str | None
) -> None:
    operation = next(each for each in plan(50, 1) if len(each.steps) == 1)
    report = Report("x", 1)
    parts = STORED[stored]
    check(
        report,
        [operation],
        [Said(operation.op, said, ["k"], 0.0, 1.0)],
        Stored({operation.op: parts} if parts else {}, []),
        {} if asked is None else {operation.op: asked},
    )
    found = [name for name in ("lost", "doubled", "wrong", "unresolved") if getattr(report, name)]
    assert found == ([] if flaw is None else [flaw])
    assert len(report.flaws) == len(found)


def test_the_checker_finds_half_an_operation_one_nobody_asked_for_and_one_without_a_word() -> None:
    three = next(each for each in plan(50, 1) if each.kind == "several")
    report = Report("x", 1)
    check(
        report,
        [three],
        [Said(three.op, "acknowledged", [], 0.0, 1.0)],
        Stored({three.op: [0, 2], "another": [0]}, ["counter 1: 2, effects 1"]),
        {},
    )
    assert (len(report.torn), len(report.wrong), len(report.sums)) == (1, 1, 1)
    silent = Report("x", 1)
    check(silent, [three], [], Stored({}, []), {})
    assert len(silent.unresolved) == 1


def test_an_operation_was_in_flight_if_a_fault_struck_between_its_beginning_and_its_end() -> None:
    said = [Said("a", "acknowledged", [], 1.0, 2.0), Said("b", "acknowledged", [], 3.0, 4.0)]
    assert in_flight(said, [0.5, 1.5, 1.6]) == 1
    assert in_flight(said, [2.5, 4.5]) == 0
    assert in_flight(said, [2.0, 3.0]) == 2


def test_figures_can_be_written_to_a_file() -> None:
    report = Report("pgsluice", 1, lost=["a"])
    report.words["queue_full"] += 2
    written = json.loads(json.dumps(report.figures()))
    assert (written["lost"], written["words"]) == (1, {"queue_full": 2})
