"""The reports of a job: what its last run, each of its members and each of its retries did, as JSON and as a page."""

from __future__ import annotations

from pydantic import ValidationError

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.report import Report
from daskinfer.storage.objects.filesystem import read_record, replace_bytes
from daskinfer.storage.objects.urls import join_url


class ReportStore:
    """What is stored of a job's reports.

    Parameters
    ----------
    url
        The job's folder.

    Examples
    --------
    >>> from daskinfer.storage.jobs.store import JobStore
    >>> from daskinfer.testing.fixtures.jobs import finish_job
    >>> reports = ReportStore(JobStore("work", finish_job("work", "labels.jsonl").job).url)
    >>> reports.last().verdict, reports.of_retry(1), reports.url("ann").endswith("reports/ann.html")
    ('done', None, True)
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, member: str = "") -> str:
        """Return where the page of the last run, or of one member's, is."""
        return self._place(f"reports/{member}.html" if member else "report.html")

    def retry_url(self, round: int) -> str:
        """Return where the page of a retry is."""
        return self._place(f"retries/{round:04d}.html")

    def last(self, member: str = "") -> Report | None:
        """Return what the last run, or one member, did, if it ended."""
        return self._read(self.url(member))

    def of_retry(self, round: int) -> Report | None:
        """Return what a retry did; None where it has written no report."""
        return self._read(self.retry_url(round))

    def save(self, report: Report, html: str, member: str = "") -> str:
        """Store what the last run, or one member, did, and return the URL of its page."""
        return self._save(self.url(member), report, html)

    def save_retry(self, round: int, report: Report, html: str) -> str:
        """Store what a retry did, and return the URL of its page."""
        return self._save(self.retry_url(round), report, html)

    def save_gate_page(self, html: str) -> None:
        """Store the page of what a gate said of a canary or a shadow."""
        replace_bytes(self._place("gate.html"), html.encode())

    def _save(self, page: str, report: Report, html: str) -> str:
        replace_bytes(page, html.encode())
        replace_bytes(_beside(page), report.model_dump_json(indent=2).encode())
        return page

    def _read(self, page: str) -> Report | None:
        place = _beside(page)
        try:
            return Report.model_validate_json(read_record(place))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise unreadable(place, "report") from error

    def _place(self, name: str) -> str:
        return join_url(self._url, name)


def unreadable(place: str, what: str) -> IntegrityError:
    """Return the error of a record that is damaged, or of another version.

    Examples
    --------
    >>> print(unreadable("work/jobs/demo/report.json", "report").message)
    work/jobs/demo/report.json is not a report that this version of daskinfer can read
    """
    return IntegrityError(
        f"{place} is not a {what} that this version of daskinfer can read",
        hint="It was damaged or written by another version; delete the job's folder to forget the job.",
    )


def _beside(page: str) -> str:
    return f"{page.removesuffix('.html')}.json"
