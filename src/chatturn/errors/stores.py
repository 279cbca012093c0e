"""The database did not do as it was asked.  The tree is in `chatturn.errors`."""

from chatturn.errors.base import ChatTurnError

__all__ = ["SchemaOutdated", "StoreError", "StoreUnavailable"]


class StoreError(ChatTurnError):
    """The database refused a statement: a bug or a wrong schema, not bad luck.  Nothing was written."""

    code = "store_rejected"
    public = "The answer could not be stored. The operator finds the reason in the log."


class StoreUnavailable(StoreError):
    """The database did not answer.  Whether the write was applied is unknown, so every write is fenced."""

    code = "store_unavailable"
    status = 503
    retryable = True
    public = "The database is not answering. Send the same request again in a moment."


class SchemaOutdated(StoreError):
    """The database's tables are missing or older than this code."""

    code = "schema_outdated"
    status = 503
    public = "The database is not set up for this version. The operator finds the command at /readyz."
