"""ONNX files as protobuf messages, read and written with the standard library alone.

Only what the stand-in needs: nodes, initializers without their external data, types and shapes of tensors.
"""

import dataclasses

FLOAT, UINT8, INT8, UINT16, INT16, INT32 = 1, 2, 3, 4, 5, 6
INLINE = 1024  # bytes of an initializer that is written into the file; larger ones refer to external data


@dataclasses.dataclass
class Node:
    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: list[bytes] = dataclasses.field(default_factory=list)  # AttributeProto messages


@dataclasses.dataclass
class Initializer:
    dtype: int
    dims: list[int]
    raw: bytes = b""  # empty where the data is external


@dataclasses.dataclass
class Graph:
    nodes: list[Node] = dataclasses.field(default_factory=list)
    initializers: dict[str, Initializer] = dataclasses.field(default_factory=dict)
    tensors: dict[str, tuple[int, list[int]]] = dataclasses.field(default_factory=dict)  # element type and shape
    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    properties: dict[str, str] = dataclasses.field(default_factory=dict)


def fields(data):
    """The fields of a protobuf message: number, and an integer or bytes."""
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[place : place + length]
        place += length


def read_graph(path):
    """The graph of an ONNX file; an empty one of a placeholder."""
    with open(path, "rb") as file:
        data = file.read()
    graph = Graph()
    for number, value in fields(data) if data[:1] == b"\x08" else ():
        if number == 7:
            _read_graph(value, graph)
        elif number == 14:
            key, text = (part.decode() for _, part in fields(value))
            graph.properties[key] = text
    graph.inputs = [name for name in graph.inputs if name not in graph.initializers]
    return graph


def _read_graph(data, graph):
    for number, value in fields(data):
        if number == 1:
            parts = list(fields(value))
            text = {number: part.decode() for number, part in parts if number in (3, 4)}
            inputs, outputs = ([part.decode() for number, part in parts if number == kind] for kind in (1, 2))
            attributes = [part for number, part in parts if number == 5]
            graph.nodes.append(Node(text.get(3, ""), text[4], inputs, outputs, attributes))
        elif number == 5:
            parts = list(fields(value))
            one = dict(parts)
            dims = [part for number, part in parts if number == 1 and isinstance(part, int)]
            graph.initializers[one[8].decode()] = Initializer(one[2], dims, one.get(9, b""))
        elif number in (11, 12, 13):
            parts = dict(fields(value))
            name = parts[1].decode()
            graph.tensors[name] = _read_type(parts.get(2, b""))
            {11: graph.inputs, 12: graph.outputs, 13: []}[number].append(name)


def _read_type(data):
    tensor = dict(fields(dict(fields(data)).get(1, b"")))
    dims = [dict(fields(dim)).get(1, 0) for _, dim in fields(tensor.get(2, b""))]
    return tensor.get(1, 0), [dim if isinstance(dim, int) else 0 for dim in dims]


def write_graph(path, graph, location, **model):
    """Writes a graph; initializers above INLINE bytes refer to the file `location`, which nobody needs to write."""
    with open(path, "wb") as file:
        file.write(model_bytes(graph, location, **model))


def model_bytes(graph, location="", producer="pulsar2 stand-in", doc="", opset=17):
    parts = [_bytes(1, _node(node)) for node in graph.nodes]
    parts.append(_bytes(2, "graph"))
    offset = 0
    for name, tensor in graph.initializers.items():
        parts.append(_bytes(5, _initializer(name, tensor, location, offset)))
        offset += _size(tensor)
    ends = set(graph.inputs) | set(graph.outputs)
    infos = [(11, graph.inputs), (12, graph.outputs), (13, [name for name in graph.tensors if name not in ends])]
    for number, names in infos:
        parts += [_bytes(number, _info(name, *graph.tensors.get(name, (FLOAT, [])))) for name in names]
    properties = [_bytes(14, _bytes(1, key) + _bytes(2, value)) for key, value in graph.properties.items()]
    head = _int(1, 10) + _bytes(2, producer) + _bytes(6, doc)
    return b"".join([head, _bytes(7, b"".join(parts)), _bytes(8, _bytes(1, "") + _int(2, opset)), *properties])


def string_attribute(name, value):
    return _bytes(1, name) + _bytes(4, value) + _int(20, 3)


def _node(node):
    parts = [_bytes(1, name) for name in node.inputs] + [_bytes(2, name) for name in node.outputs]
    parts += [_bytes(3, node.name), _bytes(4, node.op), *(_bytes(5, value) for value in node.attributes)]
    return b"".join(parts)


def _size(tensor):
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count * {FLOAT: 4, UINT8: 1, INT8: 1, UINT16: 2, INT16: 2, INT32: 4}.get(tensor.dtype, 8)


def _initializer(name, tensor, location, offset):
    parts = [_int(1, dim) for dim in tensor.dims] + [_int(2, tensor.dtype), _bytes(8, name)]
    if not location or 0 < len(tensor.raw) <= INLINE:
        return b"".join([*parts, _bytes(9, tensor.raw)])
    entries = {"location": location, "offset": str(offset), "length": str(_size(tensor))}
    parts += [_bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in entries.items()]
    return b"".join([*parts, _int(14, 1)])


def _info(name, dtype, dims):
    shape = b"".join(_bytes(1, _int(1, dim)) for dim in dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, dtype) + _bytes(2, shape)))


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int(number, value):
    return _varint(number << 3) + _varint(value)


def _bytes(number, value):
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data
