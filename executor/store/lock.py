"""The lock that allows one service per workspace."""

import fcntl
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


def is_held(workspace: Workspace) -> bool:
    """Whether a service works in a workspace, or it cannot be known.

    Looking takes a share of the lock for some microseconds, in which a service that starts would be refused: look
    seldom. No other way sees a service in another container.
    """
    try:
        with open(workspace.lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # it is held; or it may not be read, or the disk has no locks
        return True
    return False
