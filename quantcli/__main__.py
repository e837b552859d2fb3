"""`python -m quantcli`, and what the installed command calls."""

from __future__ import annotations

import gc
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit."""
    # Nothing needs cleaning up while the command line is imported and after it has ended: there Ctrl-C ends the process
    # as it ends any other program. Python's own handler would print a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from quantcli import front

    if sys.argv[1:] in ([], *([name] for name in front.NAMES)) and front.COMPLETE not in os.environ and front.show():
        sys.exit(0)
    # The objects of a large header stay: to look through them for garbage at every 700 more is a third of the time that
    # a file of many tensors takes.
    gc.set_threshold(500_000, 10, 10)
    # numpy's library of matrix products, which nothing here needs, would start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if any("://" in word for word in sys.argv[1:]):
        from quantcli.stores import system

        system.share_heap()
    from quantcli.cli import main as run

    try:
        run()
    finally:
        # Python looks once more for garbage at its exit, among all objects there are: a tenth of the smallest job.
        gc.freeze()


if __name__ == "__main__":
    main()
