"""Go-to-market: finds the proposals in an answer and reports each to the product's own service."""

import re
from typing import Final

from chatturn.product import ChatTurnHooks, FinishedTurn, StreamProducer, TurnContext, answer, print_log

__all__ = ["Hooks", "proposals"]

_INSTRUCTIONS: Final = "You plan campaigns. Begin every proposal with a line 'Proposal: ' and its title."

_PROPOSAL: Final = re.compile(r"^Proposal: *(\S.*)$", re.MULTILINE)


class Hooks(ChatTurnHooks):
    """Ask with the team's instructions, and extract the proposals."""

    def produce(self, context: TurnContext) -> StreamProducer:
        """Stream the model's answer under the product's instructions."""
        return StreamProducer(answer(context, system=_INSTRUCTIONS))

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """
        Report the proposals, under the turn's idempotency key, since this may be called more than once.

        A real product would send them to its service here; if this raises, it is called again later.
        """
        for number, title in enumerate(proposals(turn.final_text)):
            print_log("gtm.proposal", {"key": f"{turn.idempotency_key}/{number}", "title": title})


def proposals(text: str) -> list[str]:
    """Return the titles of the proposals in *text*, in their order."""
    return _PROPOSAL.findall(text)
