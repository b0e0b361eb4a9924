"""Which commit of the code this is."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def commit() -> dict[str, Any]:
    """The commit of the checkout this runs from, and whether tracked files were changed."""

    def git(*words: str) -> str | None:
        folder = Path(__file__).parent
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!/results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
    }


def short_commit() -> str:
    """Twelve digits, a + if tracked files were changed; ``unknown`` outside a checkout."""
    found = commit()
    return f"{found['commit'][:12]}{'+' * found['changed']}" if found["commit"] else "unknown"
