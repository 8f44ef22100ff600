"""Keeps Jina's log readable: a refusal is one line without a traceback."""

import logging
import warnings
from typing import Any

from ..errors import FinetunerError
from .refusals import Refusal
from .siblings import ExecutorEnded

STARTING = "initialization"  # in what it logs of one that keeps a process from starting
JINAS_ADVICE = '"--quiet-error"'  # in what Jina logs of an exception that it answers with; the advice does not help


def quieten() -> None:
    """From now on, what Jina answers with an error is logged in one line, and its own use of pydantic is no news.

    So is what keeps a process from starting, if a person can mend it. An exception that is no `Refusal` comes from
    Jina's own reading of a request; its line says where.
    """
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and JINAS_ADVICE in str(record.msg) and STARTING in str(record.msg):
            if isinstance(error, (FinetunerError, ExecutorEnded)):
                record.msg, record.args = f"The service cannot start: {error}", ()
                record.exc_info = record.exc_text = None
        elif error is not None and JINAS_ADVICE in str(record.msg):
            record.msg, record.args = _line(error), ()
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, "INFO"  # the caller's mistake, not the operator's
        return record

    logging.setLogRecordFactory(made)
    for beginning in ("Valid config keys have changed in V2", "Pydantic serializer warnings"):
        warnings.filterwarnings("ignore", message=beginning)


def _line(error: BaseException) -> str:
    if isinstance(error, Refusal):
        return f"Refused: {error}"
    if not isinstance(error, Exception):
        return repr(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" [{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}]" if trace is not None else ""
    return f"Refused: {Refusal.undecodable(error)}{where}"
