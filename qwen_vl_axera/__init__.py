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
    cli  errors  files  progress

Arrows point one way, from below to above in this list; scripts import the library, and nothing imports a script except
`preprocess.py`, which the board runs, too.
"""

__version__ = "0.1.0"
