"""Run a command, its standard output into a file, and print what it cost as JSON.

A process of its own, and a small one: what the kernel reports as a process's largest size begins with that of whoever
started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> int:
    seconds, output, *command = sys.argv[1:]
    began = time.perf_counter()
    child = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)],
    )
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(child, signal.SIGKILL))
    signal.alarm(int(seconds))
    _, status, usage = os.wait4(child, 0)  # of the child and of all its children that it waited for
    wall = time.perf_counter() - began
    cost = {"user": usage.ru_utime, "system": usage.ru_stime, "wall": wall, "rss": usage.ru_maxrss * 1024}
    print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status), "cost": cost}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
