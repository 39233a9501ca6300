"""Where a process of the command line begins, as `phi4_http` and as `python -m phi4_http`.

Ctrl-C has an exit code, and no traceback, also while modules are imported and after the last line of a command.
"""

import os
import signal
import sys

_INTERRUPTED = 130


def main() -> int:
    """Run the command line; return its exit code."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have said to ignore it
    if usual:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))  # nothing is begun yet
    from .cli import main as run

    try:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
