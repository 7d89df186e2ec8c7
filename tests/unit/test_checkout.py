"""A checkout: its scripts start also where git would write CRLF, and make says how a command ended."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tools", "scripts", "lessons", "bank")
FILES = ("Makefile", "Dockerfile", "compose.yaml", "pyproject.toml", "requirements.lock", "requirements-dev.lock")
FILES += (".dockerignore", ".env.example")


def test_a_checkout_on_windows_has_scripts_that_start(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, origin / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, origin)

    def git(*words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        done = subprocess.run(["git", *who, *words], cwd=origin, capture_output=True, text=True, check=True)
        return done.stdout

    def clone(name: str) -> dict[str, bytes]:
        # As Git for Windows does, with its default settings.
        settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
        git("clone", "--quiet", "--no-local", *settings, ".", str(tmp_path / name))
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file() and ".git" not in path.parts]
        return {path.name: path.read_bytes() for path in files}

    git("init", "--quiet")
    git("-c", "core.autocrlf=false", "add", ".")
    git("commit", "--quiet", "--message", "without attributes")
    assert {name for name, content in clone("without").items() if b"\r" in content} >= {"Makefile", "venv.sh"}
    shutil.copy(ROOT / ".gitattributes", origin)
    git("add", ".")
    git("commit", "--quiet", "--message", "with attributes")
    cloned = clone("with")
    assert cloned.keys() >= {*FILES, "venv.sh", "make-secrets", "make-roles", "forward-ports"}
    assert not [name for name, content in cloned.items() if b"\r" in content]
    assert "a.png: binary: set" in git("check-attr", "binary", "--", "a.png")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_make_demo_fails_as_the_command_does_and_says_with_which_code(tmp_path: Path, code: int) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, body in (("tools/venv.sh", "exit 0"), (".venv/bin/python", f"exit {code}")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if code else 0)  # of a recipe that fails, make has no other
    assert ("Try next" in done.stdout) == (code == 0)
    assert (f"Error {code}\n" in done.stderr) == (code != 0)
