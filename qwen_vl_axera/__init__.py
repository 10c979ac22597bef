"""Qwen2.5-VL on AXERA AX650: the library behind the scripts, a package for each part of the way.

docs/design.md has the map; tests/test_packages.py holds which package may import which. Scripts import the library, and
nothing imports a script except `preprocess.py`, which the board runs, too.
"""

import signal
import sys
from pathlib import Path

__version__ = "0.1.0"

# One of our scripts is starting: until cli.run takes over, Ctrl-C ends it without a traceback through half-loaded
# modules. Whoever imports the library into another program keeps that program's handlers.
_started = Path(sys.argv[0] if sys.argv else "")
_ours = _started == Path("-m") or (_started.suffix == ".py" and _started.absolute().parent == Path(__file__).parents[1])
if _ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
