"""How many cores this process may use: in a container those of its limit, not all of the machine's."""

import loky


def usable_cores() -> int:
    """Return how many cores' time this process may use, at least 1: by its affinity and the limit of its cgroup.

    `os.cpu_count` is blind to both. With a limit of 2 on a machine of 64 it makes 64 threads, which share the time of
    two cores, and each that has used its part of it up stands still, whatever it holds.
    """
    return int(loky.cpu_count())
