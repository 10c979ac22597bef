"""Qwen2.5-VL on AXERA AX650: the library behind the scripts.

Arrows point one way. `config` and `layout` know nothing of the others, `vision` knows `layout`,
`graph` knows `vision`, and the scripts know the library.
"""

__version__ = "0.1.0"
