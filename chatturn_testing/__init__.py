"""
A test kit for products: their hooks, run by the real engine on SQLite, in virtual time, with a scripted model.

::

    from chatturn_testing import ScriptedModel, crash_everywhere, run_turn
    from products.orders import Hooks

    def test_the_answer_is_redacted() -> None:
        turn = run_turn(Hooks(), "What did I order?", model=ScriptedModel("Card 4111 1111 1111 1111."))

        assert turn.stored == "Card [card number]."

    def test_nothing_is_lost_or_doubled() -> None:
        crash_everywhere(Hooks, "What did I order?", model=ScriptedModel("A hat."))

`run_turn` runs one turn and returns what a reader, the database and the hooks have seen of it.  `crash_everywhere`
kills the worker at every line of the product, at every turn of the event loop and before and after every write, lets
others take over, and compares what is left.  `assert_law` holds for the lines of any log, from any server.  Nothing
here is uploaded: the package stands beside ``src/``.
"""

from chatturn_testing.crashes import CrashReport, crash_everywhere
from chatturn_testing.law import assert_law
from chatturn_testing.model import ScriptedModel, ToolCalls, call_tool
from chatturn_testing.turns import HookCall, ToolEffect, Turn, run_turn

__all__ = [
    "CrashReport",
    "HookCall",
    "ScriptedModel",
    "ToolCalls",
    "ToolEffect",
    "Turn",
    "assert_law",
    "call_tool",
    "crash_everywhere",
    "run_turn",
]
