from __future__ import annotations

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_calibration_sample_is_the_one_that_its_readme_describes() -> None:
    data = (ROOT / "passes" / "data" / "sample.txt").read_bytes()
    stated = re.search(r"sha256: `(\w+)`", (ROOT / "passes" / "data" / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    assert hashlib.sha256(data).hexdigest() == stated[1]
    assert 950_000 < len(data) < 1_050_000
    data.decode()
