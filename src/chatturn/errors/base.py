"""The root of the tree, and what belongs to no branch.  The tree is in `chatturn.errors`."""

from typing import ClassVar

__all__ = ["ChatTurnError", "ConfigurationError", "HookError", "OwnerUnavailable"]


class ChatTurnError(Exception):
    """
    Base of all of them: catch this to catch everything the package raises on purpose.

    Attributes:
        code: Stable, for programs.
        status: The HTTP status, where none was sent yet.
        retryable: Whether the same request may succeed later.
        public: The only sentence about it that a client is ever shown.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    public: ClassVar[str] = "Something went wrong on our side. Contact the operator if it happens again."


class ConfigurationError(ChatTurnError):
    """A setting is missing or wrong; ``setting`` is its name in the environment."""

    code = "misconfigured"
    status = 503
    public = "The service is not configured. The operator finds the setting's name at /readyz."

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


class OwnerUnavailable(ChatTurnError):
    """The object that owns the session did not answer, or was restarted: what it was doing is taken over."""

    code = "owner_unavailable"
    status = 503
    retryable = True
    public = "The session is not reachable at the moment. Send the same request again in a moment."


class HookError(ChatTurnError):
    """
    A product's hook raised, or took longer than its deadline.

    Attributes:
        hook: Its name.
    """

    code = "hook_failed"
    public = "The product's own code failed while it handled the answer. The operator finds the reason in the log."

    def __init__(self, message: str, *, hook: str) -> None:
        super().__init__(f"{hook}: {message}")
        self.hook = hook
