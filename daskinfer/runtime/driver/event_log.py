"""What an operator reads of a job in its log, beside its incidents: an event of the driver as a record."""

from __future__ import annotations

import logging
from typing import Any

from daskinfer.errors import DaskinferError, Interrupted
from daskinfer.logs import logging_context
from daskinfer.runtime.driver.observer import RunObserver
from daskinfer.runtime.protocol.events import Committed, Event, MicrobatchDone, ShardLoaded
from daskinfer.spec.job.record import Phase

_log = logging.getLogger(__name__)


class EventLog(RunObserver):
    """Logs every event that is worth a record."""

    def on_event(self, event: Event) -> None:
        """Log an event."""
        match event:
            case ShardLoaded(ack):
                facts: dict[str, Any] = {"worker": ack.worker, "device": ack.device}
                facts |= {"read_bytes": ack.read_bytes, "seconds": ack.seconds}
                with logging_context(stage=ack.stage, snapshot=ack.snapshot):
                    _log.info("shard loaded", extra=facts)
            case Committed(record):
                rows = {"rows_out": record.rows_out, "rows_quarantined": record.rows_quarantined}
                with logging_context(partition=record.partition, snapshot=record.snapshot):
                    _log.info("partition committed", extra=rows)
            case MicrobatchDone(partition, number) if _log.isEnabledFor(logging.DEBUG):
                with logging_context(partition=partition, microbatch=number):
                    _log.debug("microbatch done")


def log_end(error: DaskinferError | None, rows_out: int, rows_quarantined: int) -> None:
    """Log how a run ended.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch(f"{__name__}._log") as log:
    ...     log_end(None, rows_out=3, rows_quarantined=0)
    >>> log.info.call_args.args
    ('job done',)
    """
    facts = {"rows_out": rows_out, "rows_quarantined": rows_quarantined}
    if error is None:
        _log.info("job done", extra=facts)
    else:
        _log.error("job ended: %s", error.message, extra=facts)


def final_phase(error: DaskinferError | None) -> Phase:
    """Return the phase that a run ends in.

    Examples
    --------
    >>> final_phase(None), final_phase(Interrupted("interrupted"))
    ('done', 'stopped')
    """
    if error is None:
        return "done"
    return "stopped" if isinstance(error, Interrupted) else "failed"
