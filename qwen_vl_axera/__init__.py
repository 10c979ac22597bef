"""Qwen2.5-VL on AXERA AX650: the library behind the scripts, a room for each part of the way.

    contract      names, defaults and what a graph is made for: all that several rooms must agree on
    checkpoint    config.json, safetensors files, the embeddings
    frames        videos, directories and pictures as frames
    towers        model_type -> tower: a model's numbers, the module that is exported, transformers' original
    oracle        what transformers makes of a clip, saved
    graph         PyTorch -> ONNX
    fidelity      is the graph transformers' tower? numbers, text, the compiled model
    calibration   the archive that the compiler calibrates with
    compiler      Pulsar2: its commands, its container, its configuration
    preflight     is everything in place for the compiler?
    board         the directory that is uploaded
    chain         the steps of export_video.sh: what they read and write, what is up to date
    report        report.html
    quantization  what 8 and 16 bits cost: the compiled tower, simulated
    cli  doors  errors  files  memory  progress  record  swap

Arrows point one way, from below to above in this list; scripts import the library, and nothing imports a script except
`preprocess.py`, which the board runs, too.
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
