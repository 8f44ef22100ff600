"""The lock that allows one service per workspace."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import WorkspaceError
from .files import is_full
from .workspace import Workspace


class WorkspaceLock:
    """Held as long as a service runs. The operating system releases it when the process ends, even by a crash.

    Raises: WorkspaceError: another service holds it; the message names its process.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._lock = FileLock(workspace.lock, blocking=False, thread_local=False)
        try:
            workspace.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._name_holder(workspace.lock)
        except Timeout:
            holder = workspace.lock.read_text().strip() or "unknown"
            raise WorkspaceError(
                f"The workspace {workspace.root} is in use by another service (process {holder}); "
                "stop that one, or give this one a workspace of its own."
            ) from None
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {workspace.root} cannot be used: {error}. Check its permissions and its disk."
            ) from error

    def _name_holder(self, file: Path) -> None:
        try:
            file.write_text(str(os.getpid()))
        except OSError as error:
            if not is_full(error):  # on a full disk the lock is held as well, by nobody knows whom
                raise

    def release(self) -> None:
        """Let another service use the workspace."""
        self._lock.release()
