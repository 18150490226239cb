"""MLflow on a user's terminal: no telemetry, no migration log, no tracebacks of errors that the
writer reports itself.

Every value is a default: a variable that the user has set stays as it is.
"""

import logging
import os

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is away is retried by the writer; mlflow's own seven retries would hold `close`
    # for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
LEVELS = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # logs every database error with its traceback
    "mlflow.tracking._tracking_service.utils": logging.ERROR,
    "alembic": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)


def loggers() -> None:
    """Set the levels (after mlflow has been imported, which sets its own); MLFLOW_LOGGING_LEVEL
    wins.
    """
    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        return
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
