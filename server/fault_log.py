"""One log entry for a bug of ours, without a word of what clients said."""

import logging
import traceback

_log = logging.getLogger("deltaserve.http")


def log_fault(request_id: str, error: Exception) -> None:
    """Log where it happened. The exception's own text may quote the request, so it stays out."""
    where = "".join(traceback.format_tb(error.__traceback__))
    kind = type(error).__name__
    _log.error("request %s failed with %s\n%s", request_id, kind, where)
