"""
What one sweep may use of its invocation: queries and time, by plan.

Cloudflare gives an invocation 1,000 round trips to D1 on the paid plan and 50 on the free one, and a cron 15 minutes.
A cron comes each minute; so a sweep begins no turn and no hook call after 45 s, and ends what it has begun.  What comes
after them has 10 s of its own then: turns may take longer than the minute, again and again.

An invocation that is started through a service binding has queries of its own.  Starting it is one subrequest; one
request may lead to 32 invocations.

Source:
    developers.cloudflare.com/d1/platform/limits: queries for each invocation; a batch is one subrequest.
    developers.cloudflare.com/workers/runtime-apis/bindings/service-bindings: its limits.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chatturn.database.api import Database, Result, Statement
from chatturn.settings import Plan

__all__ = ["SWEEP_SHARES", "CountedDatabase", "SweepBudget", "SweepShares"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepShares:
    """
    How the queries of a sweep are shared.

    Attributes:
        queries: The queries of the whole sweep.
        kept_back: Queries that are kept for the work after turns and hooks.
        turns: The most turns that the sweep runs.
        turns_at_once: Turns beside each other; each may hold 1 of the invocation's 6 connections.
        of_a_turn: Queries of a short turn; a long turn takes more, and no other turn begins meanwhile.
        hook_calls: The most hook calls that the sweep makes.
        hooks_at_once: Hook calls beside each other, so that a receiver that hangs does not hold up the others.
        sessions: The most sessions that the sweep deletes for people who ask for it.
        parts: How many other invocations the sweep lets run turns.
    """

    queries: int
    kept_back: int
    turns: int
    turns_at_once: int
    of_a_turn: int
    hook_calls: int
    hooks_at_once: int
    sessions: int
    parts: int


SWEEP_SHARES: Final[Mapping[Plan, SweepShares]] = {
    "paid": SweepShares(
        queries=960,
        kept_back=60,
        turns=90,
        turns_at_once=5,
        of_a_turn=12,
        hook_calls=203,
        hooks_at_once=8,
        sessions=60,
        parts=3,
    ),
    "free": SweepShares(
        queries=48,
        kept_back=8,
        turns=1,
        turns_at_once=1,
        of_a_turn=16,
        hook_calls=6,
        hooks_at_once=2,
        sessions=2,
        parts=3,
    ),
}

_BEGINS_UNTIL_S: Final = 45.0
_TIDIES_FOR_S: Final = 10.0
_OF_A_HOOK: Final = 3


class CountedDatabase:
    """
    A database that counts its round trips.

    Args:
        database: The database.

    Attributes:
        used: How many there were.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.used = 0

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*; see `Database.batch`."""
        self.used += 1
        return await self._database.batch(statements)


class SweepBudget:
    """
    Says whether there is room to begin something more.

    Args:
        database: Counts what is used.
        shares: The shares of the plan.
    """

    def __init__(self, database: CountedDatabase, shares: SweepShares) -> None:
        self.shares = shares
        self._database = database
        self._turns = 0
        self._running = 0
        self._hook_calls = 0
        self._parts = 0
        self._until = asyncio.get_running_loop().time() + _BEGINS_UNTIL_S

    def begin_turn(self) -> bool:
        """Say whether a turn may begin; then `turn_ended` is owed."""
        shares = self.shares
        if self._turns >= shares.turns or not self._room(shares.of_a_turn, shares.kept_back):
            return False
        self._turns += 1
        self._running += 1
        return True

    def turn_ended(self, *, ran: bool) -> None:
        """Give back the queries that a turn has not needed; a turn that did not run does not count."""
        self._running -= 1
        self._turns -= not ran

    def begin_hook_call(self) -> bool:
        """Say whether a hook may be called."""
        if self._hook_calls >= self.shares.hook_calls or not self._room(_OF_A_HOOK, self.shares.kept_back):
            return False
        self._hook_calls += 1
        return True

    def begin_part(self) -> bool:
        """Say whether another invocation may be started; that is one subrequest."""
        if self._parts >= self.shares.parts or not self._room(1, self.shares.kept_back):
            return False
        self._parts += 1
        return True

    def tidy(self) -> None:
        """Begin the work after turns and hooks: there is time for it, however long those took."""
        self._until = max(self._until, asyncio.get_running_loop().time() + _TIDIES_FOR_S)

    def room(self, queries: int) -> bool:
        """Say whether there is room for *queries* queries, after turns and hooks."""
        return self._room(queries, 0)

    def _room(self, queries: int, kept_back: int) -> bool:
        promised = self._running * self.shares.of_a_turn + self._parts
        fits = self._database.used + promised + queries <= self.shares.queries - kept_back
        return fits and asyncio.get_running_loop().time() < self._until
