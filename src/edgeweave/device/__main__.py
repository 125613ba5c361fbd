"""Run an agent as a process: ``python -m edgeweave.device SETTINGS.json`` (``edgeweave join`` too).

With ``until_stdin_closes`` the agent ends when its parent does, however that ends; otherwise on
SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import sys

from edgeweave.device import memory
from edgeweave.device.process import main

if __name__ == "__main__":
    memory.leave_at_exit()
    sys.exit(main(sys.argv[1:]))
