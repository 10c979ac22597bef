"""Qwen2.5-VL on AXERA AX650: the library behind the scripts.

The path of a clip, in the order of the chain:

    frames      media, video, calibration_sources     what the model sees, read with little memory
    weights     checkpoint, config, tensors           safetensors, one tensor at a time
    oracle      reference, capture                    transformers' own tower, step by step
    graph       layout, vision, weights, lowering, graph, operators, conversion
    judgement   runner, fidelity, verification, chat, mrope
    compiler    calibration, pulsar2, npu/            what Pulsar2 gets, and whether it fits together
    board       embedding, board/                     what is uploaded
    around it   cli, files, progress, chain/, report/

Arrows point one way. `config` and `layout` know nothing of the others, `vision` knows `layout`, `graph` knows
`vision`, and the scripts know the library.
"""

__version__ = "0.1.0"
