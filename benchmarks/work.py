"""What every contestant of a case is given: the same model, rows, cores and batches."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """One job, as a contestant reads it from a file; peers run in another environment."""

    task: str
    """`embed`, `score`, or `classify` for images."""
    model: str
    """Folder of a checkpoint as `save_pretrained` writes it."""
    input: str
    """jsonl with a column `text`, or a folder of images whose names sort in the order of the rows."""
    folder: str
    """Where a contestant may write."""
    cores: int
    partition_rows: int
    """Rows that are handed to a worker together, where a contestant has workers."""
    batch_rows: int
    """Rows of a batch, where a contestant counts rows."""
    batch_tokens: int
    """Padded tokens of a batch, where a contestant counts tokens."""
    max_length: int = 256

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @staticmethod
    def load(path: Path) -> Work:
        return Work(**json.loads(path.read_text()))

    def read_rows(self) -> list[str]:
        """Return the texts, or the paths of the images."""
        if self.task == "classify":
            return sorted(str(path) for path in Path(self.input).iterdir())
        with Path(self.input).open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]

    def mark_ready(self) -> None:
        """Say that a process has its model loaded; what runs from the first such mark on is `running`."""
        self._mark("ready")

    def mark_done(self) -> None:
        """Say that the last byte is written."""
        self._mark("done")

    def clear_marks(self) -> None:
        for path in Path(self.folder).glob("mark-*"):
            path.unlink()

    def read_running(self) -> float:
        """Return the seconds from the first process that was ready to the end."""
        times = {word: [int(path.suffix[1:]) for path in Path(self.folder).glob(f"mark-{word}.*")] for word in _MARKS}
        return (min(times["done"]) - min(times["ready"])) / 1e9

    def _mark(self, word: str) -> None:
        Path(self.folder, f"mark-{word}.{time.time_ns()}").touch()


_MARKS = ("ready", "done")
