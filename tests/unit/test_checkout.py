"""What a checkout looks like on a machine whose git would write CRLF."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_checkout_on_windows_has_scripts_that_start(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)

    def git(*words: str) -> str:
        # No configuration but this one: a checkout by Git for Windows, with its default settings.
        settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf", "-c", "core.safecrlf=false"]
        done = subprocess.run(["git", *settings, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "--quiet")
    git("add", ".")
    shutil.rmtree(tmp_path / "tools")
    (tmp_path / "Makefile").unlink()
    git("checkout-index", "--all")
    scripts = [*(tmp_path / "tools").iterdir(), tmp_path / "Makefile"]
    assert len(scripts) > 1
    assert not [script.name for script in scripts if b"\r" in script.read_bytes()]
    assert "a.png: binary: set" in git("check-attr", "binary", "--", "a.png")
