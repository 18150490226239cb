"""Whether a store answers, quickly, and whether an error says that it is away: MLflow's own calls
wait for minutes.
"""

from __future__ import annotations

import errno
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, SQLAlchemyError

SECONDS = 5.0  # that a server has for an answer
# What the store says of a record that it will refuse however often it is sent (a run or experiment
# deleted by hand).
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
}
AWAY = {
    "TEMPORARILY_UNAVAILABLE",
    "INTERNAL_ERROR",
    "REQUEST_LIMIT_EXCEEDED",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}


class Away(OSError):
    """The store does not answer."""


def is_server(uri: str) -> bool:
    """Whether an MLflow server is meant."""
    return uri.startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI; None for other stores and for a database in memory."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if match is None or match[1] == ":memory:":
        return None
    return Path(match[1]).resolve()


def ask(uri: str) -> None:
    """Raises Away when a server does not answer within SECONDS, or answers with a 5xx. Other stores
    are not asked.
    """
    if not is_server(uri):
        return
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[
        2
    ]  # without user and password: any answer will do, a refusal too
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise Away(f"{host} answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if not isinstance(
            error.reason, ssl.SSLError
        ):  # which certificates are trusted is MLflow's business
            raise Away(f"{host} does not answer: {error.reason}") from None
    except (OSError, ValueError) as error:
        raise Away(f"{host} does not answer: {error}") from None


def present(uri: str) -> None:
    """Raises Away when a sqlite store's file is missing: a new connection would put an empty one
    into its place.
    """
    file = sqlite_file(uri)
    if file is not None and not (file.is_file() and file.stat().st_size):
        if file.exists() and not file.is_file():
            what = "is no file"
        elif file.exists():
            what = "is empty"
        else:
            what = "is missing"
        raise Away(f"{file} {what}")


def away(error: BaseException) -> bool:
    """Whether an error says that the store cannot be reached now (and may be later), not that
    something is wrong.
    """
    if isinstance(error, MlflowException):
        return error.error_code in AWAY
    if isinstance(error, OSError):
        return isinstance(error, (Away, ConnectionError, TimeoutError)) or error.errno in DISK
    return isinstance(error, OperationalError)


def permanent(error: Exception) -> bool:
    """Whether sending a record again is of no use."""
    if not isinstance(error, MlflowException) or error.error_code not in PERMANENT:
        return False
    # MLflow calls every database error but one a bad request: only what is wrong with the record
    # itself is one.
    cause = error.__cause__
    return not isinstance(cause, SQLAlchemyError) or isinstance(cause, (DataError, IntegrityError))
