"""The default product: the deployment's model, the session's history, no hooks."""

from chatturn.product import ChatTurnHooks

__all__ = ["Hooks"]


class Hooks(ChatTurnHooks):
    """Ask the model what the user asked; a request may bring tools, which its client runs."""

    client_tools = True
