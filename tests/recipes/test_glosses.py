"""The demo's input: the same rows every time, from WordNet or from what the machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"


def write_wordnet(folder: Path) -> Path:
    """Write forty synsets in WordNet's own format."""
    folder.mkdir(parents=True)
    for part, kind in {"noun": "n", "verb": "v", "adj": "s", "adv": "r"}.items():
        lines = [
            f'{number:08d} 03 {kind} 02 {part}{number}(a) 0 other 0 001 @ 00001740 n 0000 | gloss {part} {number}; "so"  \n'
            for number in range(10)
        ]
        (folder / f"data.{part}").write_text(LICENCE + "".join(lines))
    return folder


def run_glosses(output: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/glosses.py"), str(output), *words]
    environment = os.environ | ({} if path is None else {"PATH": path})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_from_every_part_of_speech_in_order(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "work/wordnet-base/usr/share/wordnet")
    done = run_glosses(tmp_path / "g.jsonl", "--rows", "8", "--work", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "g.jsonl")
    assert [row["id"] for row in rows[:3]] == ["noun0.n.00000000", "noun5.n.00000005", "verb0.v.00000000"]
    assert rows[0]["text"] == 'gloss noun 0; "so"'
    assert len(rows) == 8


def test_all_rows_and_more_than_there_are(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "work/wordnet-base/usr/share/wordnet")
    for rows in ("all", "500"):
        assert run_glosses(tmp_path / rows, "--rows", rows, "--work", str(tmp_path / "work")).returncode == 0
        assert len(read_rows(tmp_path / rows)) == 40


def test_same_rows_leave_the_file_untouched(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "work/wordnet-base/usr/share/wordnet")
    output, words = tmp_path / "g.jsonl", ("--work", str(tmp_path / "work"))
    run_glosses(output, "--rows", "8", *words)
    os.utime(output, ns=(1, 1))
    assert "already there" in run_glosses(output, "--rows", "8", *words).stderr
    assert output.stat().st_mtime_ns == 1
    run_glosses(output, "--rows", "9", *words)
    assert output.stat().st_mtime_ns != 1


def test_without_wordnet_and_apt_the_machine_s_own_text_is_used_and_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_glosses(tmp_path / "g.jsonl", "--work", str(tmp_path / "work"), path=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    if not Path("/usr/share/wordnet/data.noun").exists():
        assert "text that ships with this machine" in done.stderr
    rows = read_rows(tmp_path / "g.jsonl")
    assert len(rows) == 24_000
    assert len({row["id"] for row in rows}) == 24_000


def test_a_wrong_number_of_rows_is_refused(tmp_path: Path) -> None:
    done = run_glosses(tmp_path / "g.jsonl", "--rows", "many")
    assert done.returncode == 2
    assert "'many'" in done.stderr
