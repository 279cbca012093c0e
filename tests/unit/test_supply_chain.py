"""What is installed is what was looked at: each package with its digest, none from an address."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path for path in ROOT.glob("*/package-lock.json"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_every_npm_package_has_its_digest(lock: Path) -> None:
    """Those for other systems, too, which this machine never installs."""
    packages: dict[str, Any] = json.loads(lock.read_text("utf-8"))["packages"]
    without = [name for name, each in packages.items() if name and not each.get("integrity", "").startswith("sha512-")]

    assert [] == without
    assert not any("resolved" in each for each in packages.values())


def test_there_is_a_lock_file() -> None:
    """Else the test above would have nothing to look at."""
    assert ROOT / "dev" / "package-lock.json" in LOCKS


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-worker.txt"])
def test_every_python_package_has_its_digest(name: str) -> None:
    """And an exact version; an address would be another source than the registry that was chosen."""
    text = (ROOT / name).read_text("utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())

    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==[^\s\\]+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    assert "://" not in text
