"""One service a workspace."""

import fcntl
import os

from ..errors import WorkspaceError
from .workspace import Workspace


class WorkspaceLock:
    """Held for the life of a service; the system releases it when the process ends, however it ends.

    Raises: WorkspaceError: another service holds it; the message names its process.
    """

    def __init__(self, workspace: Workspace) -> None:
        try:
            workspace.root.mkdir(parents=True, exist_ok=True)
            self._file = open(workspace.lock, "a+")  # noqa: SIM115  (held until release)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {workspace.root} cannot be used: {error}. Check its permissions and its disk."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise WorkspaceError(
                f"The workspace {workspace.root} is in use by another service (process {holder}); "
                "stop that one, or give this one a workspace of its own."
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another service use the workspace."""
        self._file.close()
