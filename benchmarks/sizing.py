"""How many connections and nodes: queueing theory in plain functions.

A statement passes two places. One is the node's process, which does one thing at a time and
takes `cpu` seconds for a request. The other are `connections` to PostgreSQL, each of which is
taken for `service` seconds: the statement, the network there and back, the reset behind it.
Between two statements a caller does something else for `think` seconds.

Callers who wait for their answer make a closed network, solved by convolution (Buzen, 1973);
requests that come from very many callers, each of whom comes rarely, make an open queue,
M/M/c, with Erlang's C formula (1917).

    >>> round(erlang_c(offered=2.0, servers=3), 4)
    0.4444
    >>> round(closed(1, Work(cpu=0.001, service=0.004), connections=8).seconds, 6)
    0.005
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Work(NamedTuple):
    """What one statement costs, in seconds."""

    cpu: float
    """Of the node's one process."""
    service: float
    """For which a connection is taken."""


class Steady(NamedTuple):
    """What callers see when it has gone on for a while."""

    per_second: float
    """Answers."""
    seconds: float
    """From question to answer, on average."""
    waiting: float
    """The part of it that is waiting for a connection, or for the process."""


def little(per_second: float, seconds: float) -> float:
    """How many are inside: Little's law."""
    return per_second * seconds


def closed(callers: int, work: Work, *, connections: int, think: float = 0.0) -> Steady:
    """*callers* who each ask, wait for the answer, do something else, and ask again."""
    # Logarithms of the sums of weights of all states with so many callers; nothing overflows.
    pause = math.log(think) if think else -math.inf
    sums = [0.0] + [count * pause - math.lgamma(count + 1) for count in range(1, callers + 1)]
    cpu = math.log(work.cpu)
    for count in range(1, callers + 1):
        sums[count] = _added(sums[count], cpu + sums[count - 1])
    service = math.log(work.service)
    few = [used * service - math.lgamma(used + 1) for used in range(connections)]
    step = service - math.log(connections)
    full = few[-1] + step
    rest = -math.inf  # all connections in use
    both = []
    for count in range(callers + 1):
        if count >= connections:
            rest = _added(step + rest, full + sums[count - connections])
        both.append(
            _added(
                rest, *(weight + sums[count - used] for used, weight in enumerate(few[: count + 1]))
            )
        )
    rate = math.exp(both[-2] - both[-1])
    response = callers / rate - think
    return Steady(rate, response, response - work.cpu - work.service)


def _added(*logarithms: float) -> float:
    most = max(logarithms)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(each - most) for each in logarithms))


def erlang_c(offered: float, servers: int) -> float:
    """How likely a request has to wait, of requests that keep *offered* servers busy."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def wait(per_second: float, service: float, servers: int) -> float:
    """Seconds that a request waits on average, of requests that come at random."""
    offered = little(per_second, service)
    if offered >= servers:
        return math.inf
    return erlang_c(offered, servers) * service / (servers - offered)


class House(NamedTuple):
    """What a number of callers needs."""

    per_second: float
    nodes: int
    connections: int
    """Of all nodes together."""
    seconds: float
    """From question to answer, on average."""


def needed(
    callers: int,
    work: Work,
    *,
    think: float,
    busy: float = 0.6,
    patience: float = 0.005,
) -> House:
    """The nodes and connections for *callers* that ask, on average, every *think* seconds.

    Args:
        busy: Part of a node's process that may be used; the rest is for peaks.
        patience: Seconds that a statement may wait for a connection on average.
    """
    rate = callers / (think + work.cpu + work.service)
    nodes = max(1, math.ceil(little(rate, work.cpu) / busy))
    share = rate / nodes
    each = 1
    while wait(share, work.service, each) > patience or little(share, work.service) > 0.9 * each:
        each += 1
    seconds = work.cpu + wait(share, work.cpu, 1) + work.service + wait(share, work.service, each)
    return House(rate, nodes, nodes * each, seconds)
