"""The rows of the cases: WordNet's glosses, short sentences, and images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GLOSSES = ROOT / "data/glosses-all.jsonl"
WORDS = (
    "the",
    "cat",
    "dog",
    "river",
    "sun",
    "stone",
    "water",
    "child",
    "house",
    "green",
    "small",
    "cold",
    "runs",
    "falls",
    "over",
)


def write_glosses(folder: Path, rows: int) -> Path:
    """Write glosses at even distances."""
    target = folder / "glosses.jsonl"
    if not GLOSSES.is_file():
        subprocess.run([sys.executable, ROOT / "recipes/glosses.py", GLOSSES, "--rows", "all"], check=True, cwd=ROOT)
    lines = GLOSSES.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(spread(lines, rows)), encoding="utf-8")
    return target


def spread(lines: list[str], rows: int) -> list[str]:
    """Return so many lines at even distances, some of them again where there are fewer."""
    return [lines[index * len(lines) // rows] for index in range(rows)]


def write_sentences(folder: Path, rows: int) -> Path:
    """Write sentences of four to eight words."""
    target = folder / "sentences.jsonl"
    random = np.random.default_rng(0)
    with target.open("w") as stream:
        for row in range(rows):
            text = "the " + " ".join(random.choice(WORDS, random.integers(3, 8)))
            stream.write(json.dumps({"id": row, "text": text}) + "\n")
    return target


def write_images(folder: Path, rows: int) -> Path:
    """Write JPEG files of 320 by 240 pixels: soft patterns, as noise alone would be far larger than photographs."""
    from PIL import Image

    random = np.random.default_rng(0)
    target = folder / "images"
    target.mkdir()
    for row in range(rows):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(target / f"{row:06}.jpg", quality=90)
    return target
