"""Directories for servers, which are thousands of files: in memory where there is room."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bankrun.servers.state_dir import MEMORY, directory_in_memory


def make_place(prefix: str) -> Path:
    """Make a directory that the servers' user can enter, with a path short enough for sockets; the caller removes it.

    Pytest's own are closed to the user that Postgres runs as.
    """
    runs_programs = directory_in_memory() is not None and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    path = Path(tempfile.mkdtemp(prefix=f"bankrun-{prefix}-", dir=MEMORY if runs_programs else "/tmp"))
    path.chmod(0o755)
    return path
