"""The graph as a build leaves it: fused, with a type for every tensor, as records in the forms of real builds.

The rules are those that third parties read in real builds: a tensor takes the type of its readers, movement operators
keep it, a requantisation stands in front of each reader of another type, weights and constants are baked. What no
public text shows (scales of inner tensors, cycles, some names) is made up, and only plausible.
"""

import os
import struct
import zlib

from lies import lie
from onnx_file import FLOAT, INT8, INT16, UINT8, UINT16, Graph, Initializer, Node

CHAINS = {  # what fuses: the operators one after the other, and the name that is left
    ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"): "RMSNormalization",
    ("Mul", "Erf", "Mul", "Add", "Mul"): "Gelu",
    ("Sigmoid", "Mul"): "Silu",
}
PASSIVE = ("Reshape", "Transpose", "Gather", "Split", "Concat", "Slice", "pre_Reshape")
MERGED = ("Reshape", "Transpose")  # of two in a row the first is no operator of its own in the compiled graph
FLOATS = ("LeakyRelu", "Sigmoid", "Relu", "Add", "Mul", "Div", "Sub", "Concat", "Softmax", "Sqrt", "ReduceSum")
ELEMENT = {(8, False): UINT8, (8, True): INT8, (16, False): UINT16, (16, True): INT16, (32, True): FLOAT}
U8 = (8, False)
POLICY = (
    "PER_TENSOR PER_CHANNEL LINEAR EXPONENTIAL SYMMETRICAL ASYMMETRICAL POWER_OF_2 PER_CHANNEL_RE_GROUP PER_BLOCK"
).split()
QUANTIZED = {"RMSNormalization": "RMSNorm", "FullyConnected": "FullyConnected", "Gemm": "FullyConnected"}


class FusedAway(Exception):
    """A layer of layer_configs is not there any more."""


class Operator:
    """An operator after fusion: `op` is its type, with "onnx." in front where the compiler made it."""

    def __init__(self, node, name=None, op=None, inputs=None, inner=()):
        self.name, self.op = name or node.name, op or node.op
        self.inputs, self.outputs = list(inputs or node.inputs), list(node.outputs)
        self.attributes = node.attributes
        self.inner = list(inner)  # tensors that the fusion took away
        self.asked = "U8"

    @property
    def kind(self):
        return self.op.removeprefix("onnx.")

    @property
    def passive(self):
        return self.kind in PASSIVE


class Build:
    """A graph after the compiler's passes.

    Args:
        graph: what `read_graph` returns.
        config: the configuration.
        ranges: of tensors where they are known, as (lowest, highest).
        weights: of initializers where they are known: a list of the largest magnitudes per output channel.
    """

    def __init__(self, graph, config, ranges=None, weights=None):
        self.graph, self.quant = graph, config["quant"]
        self.ranges, self.weights = dict(ranges or {}), dict(weights or {})
        self.operators = fuse(graph)
        self.selectors = {}
        self._ask()
        if lie("renamed"):
            for number, operator in enumerate(self.operators):
                operator.name = f"op_{number}:onnx.{operator.kind}"
        self._types()
        self._entries()

    def data(self, operator):
        """Its inputs that are no initializers."""
        return [name for name in operator.inputs if name and name not in self.graph.initializers]

    def _ask(self):
        """The type that every operator was asked for: the whole graph's, its type's, its own."""
        gone = {node.name for node in self.graph.nodes} - {operator.name for operator in self.operators}
        entries = self.quant.get("layer_configs", [])
        for entry in entries:
            if entry.get("start_tensor_names"):
                between = self._between(entry["start_tensor_names"], entry.get("end_tensor_names", ["DEFAULT"]))
                for operator in between:
                    operator.asked = self._given(operator, entry)
        reach = lie("reach")
        for entry in entries:
            types = [*entry.get("op_types", []), *filter(None, [entry.get("op_type")])]
            for kind in types:
                found = [operator for operator in self.operators if operator.op == kind and "onnx." not in kind]
                for operator in found[: int(reach) if reach else None]:
                    operator.asked = self._given(operator, entry)
                if found:
                    self.selectors[kind] = {"dtype": self._given(found[0], entry)}
        known = {operator.name: operator for operator in self.operators}
        for entry in entries:
            for name in [*entry.get("layer_names", []), *filter(None, [entry.get("layer_name")])]:
                if name in gone:
                    raise FusedAway(f"KeyError: Op of name({name}) doesn't exist in model: fused away")
                if name in known:  # any other is passed over in silence
                    known[name].asked = self._given(known[name], entry)
                    self.selectors[name] = {"dtype": known[name].asked}

    @staticmethod
    def _given(operator, entry):
        """What the compiler makes of an entry: no float where it has none, no S16 where nothing is negative."""
        asked = entry.get("data_type", "U8")
        if asked == "FP32" and operator.kind not in FLOATS:
            return "U8" if operator.kind == "MatMul" else operator.asked
        return "U8" if asked == "S16" and operator.kind in ("Softmax", "Sigmoid", "Sqrt", "Pow") else asked

    def _between(self, starts, ends):
        """The operators on a way from one of the tensors `starts` to one of `ends`."""
        after, before = set(starts), set(ends)
        below = [one for one in self.operators if "DEFAULT" in starts or _add(after, one.inputs, one.outputs)]
        above = [one for one in self.operators[::-1] if "DEFAULT" in ends or _add(before, one.outputs, one.inputs)]
        return [operator for operator in below if operator in above] if "DEFAULT" not in ends else below

    def own_type(self, operator):
        """Bits and sign of what an operator reads: both operands of a product of two activations are signed."""
        if operator.asked == "FP32":
            return 32, True
        stubborn = operator.kind in os.environ.get("STAND_IN_8BITS", "").split()
        bits = 16 if operator.asked.endswith("16") and not stubborn else 8
        return bits, operator.kind == "MatMul" and len(self.data(operator)) == 2

    def _types(self):
        """A type for every tensor, from its readers backwards; `reads` holds what each reader wants."""
        wanted, self.types, self.reads = {}, {}, {}
        for operator in reversed(self.operators):
            own = self.own_type(operator)
            asked = {name: wanted.get(name, set()) for name in operator.outputs}
            if operator.passive:
                one = combine(set().union(*asked.values())) or U8  # a graph that ends so ends at 8 bits
                if operator.kind == "Concat" and operator.asked == "U8":
                    one = (8, one[1])
                given, read = dict.fromkeys(asked, one), one
            else:
                mine, read = (own[0], own[0] == 32), own
                given = {name: combine(types) or mine for name, types in asked.items()}
                given = {name: one if (one[0] == 32) == (own[0] == 32) else mine for name, one in given.items()}
            self.types |= given
            for name in self.data(operator):
                wanted.setdefault(name, set()).add(read)
                self.reads[operator.name, name] = read
        for name in self.graph.inputs:
            self.types[name] = combine(wanted.get(name, set())) or U8

    def _entries(self):
        """tensor_configs and values: who owns a scale, and who takes another's."""
        self.configs, self.values, self._last = {}, {}, 140_000_000_000_000
        root = self._groups()
        owners = {}  # (group, type) -> hash of the entry that owns the scale
        for operator in self.operators:
            if not operator.passive:
                for name in self.data(operator):
                    owners.setdefault((root[name], self.reads[operator.name, name]), (operator.name, name))
        hashes = {owner: self._hash() for owner in owners.values()}
        shared = {}  # a scale that no entry owns: of a graph's output, and behind a requantisation
        for operator in self.operators:
            entries = self.configs[operator.name] = {}
            for place, name in enumerate(operator.inputs):
                if name and name in self.graph.initializers:
                    entries[self._baked_name(operator, name)] = self._parameter(operator, place, name)
            active = [(name, self.reads[operator.name, name]) for name in self.data(operator)]
            active += [(name, self.types[name]) for name in operator.outputs]
            for name, kind in active:
                key, here = (root[name], kind), (operator.name, name)
                if owners.get(key) == here and name not in operator.outputs:
                    entries[name] = self._entry(kind, "ACTIVATED", hashes[here])
                    self._value(hashes[here], root[name], kind)
                    continue
                if key in owners:
                    dominator = hashes[owners[key]]
                else:
                    dominator = shared.setdefault(key, 0) or self._hash()
                    shared[key] = dominator
                    self._value(dominator, root[name], kind)
                entries[name] = self._entry(kind, "OVERLAPPED", self._hash(), dominator)
            for name in operator.inner:  # these mean nothing: no operator of the compiled graph has them
                number = self._hash()
                entries[name] = self._entry(U8, "ACTIVATED", number)
                self._value(number, name, U8)

    def _groups(self):
        """The tensor whose range stands for all that movement operators join at one type."""
        root = {}

        def find(name):
            while root.setdefault(name, name) != name:
                name = root[name]
            return name

        for name in self.graph.inputs:
            find(name)
        for operator in self.operators:
            for name in operator.outputs:
                find(name)
            for name in self.data(operator) if operator.passive else ():
                for output in operator.outputs:
                    if self.types.get(name) == self.types[output]:
                        root[find(output)] = find(name)
        joined = {}
        for name in root:
            joined.setdefault(find(name), []).append(name)
        for head, names in joined.items():
            known = [self.ranges[name] for name in names if name in self.ranges]
            if known:
                self.ranges[head] = min(low for low, _ in known), max(high for _, high in known)
        return {name: head for head, names in joined.items() for name in names}

    def _hash(self):
        self._last += 7919
        return self._last

    @staticmethod
    def _entry(kind, state, number, dominator=None, channels=False):
        bits, signed = kind
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        on = {"LINEAR", "PER_CHANNEL" if channels else "PER_TENSOR", "SYMMETRICAL" if signed else "ASYMMETRICAL"}
        entry = {
            "bit_width": bits,
            "policy": {name: name in on for name in POLICY},
            "state": "FP32" if bits == 32 and state in ("ACTIVATED", "OVERLAPPED") else state,
            "quant_min": low,
            "quant_max": high,
            "hash": number,
            "dominator": dominator or number,
        }
        if lie("extra"):
            entry["observer"] = {"name": "MinMax"}
            entry["policy"]["FLOATING"] = False
        return entry

    def _baked_name(self, operator, name):
        return f"{name}_trans" if operator.op == "onnx.FullyConnected" and operator.inputs[1] == name else name

    def _parameter(self, operator, place, name):
        """The entry of an initializer: a weight, a bias, an index or shape, a number that stays, or a constant."""
        tensor, number = self.graph.initializers[name], self._hash()
        if operator.kind in ("Gemm", "FullyConnected", "MatMul"):
            if place == 2:
                return self._entry((32, True), "PASSIVE_BAKED", number)
            rows = tensor.dims[0] if operator.kind == "Gemm" else tensor.dims[-1]  # a Gemm has its weight transposed
            most = self.weights.get(name) or [0.05 + 0.01 * (row * 37 % 101) for row in range(rows)]
            self.values[str(number)] = {"scale": [_f32(top / 127.5) for top in most], "zero_point": [0.0] * len(most)}
            return self._entry((8, True), "BAKED", number, channels=True)
        if operator.kind in PASSIVE:
            return self._entry((32, True), "SOI", number)
        if operator.kind in ("Pow", "ReduceMean"):
            return self._entry((32, True), "FP32", number)
        kind = (16, False) if lie("constants16") and self.own_type(operator)[0] == 16 else U8
        self._value(number, name, kind)
        return self._entry(kind, "BAKED", number)

    def _value(self, number, tensor, kind):
        bits, signed = kind
        if bits == 32:
            return
        low, high = self.ranges.get(tensor) or plausible(tensor)
        if signed:
            scale, zero = max(-low, high) / ((1 << bits - 1) - 0.5), 0.0
        else:
            low, high = min(low, 0.0), max(high, 0.0)
            scale = _f32((high - low) / ((1 << bits) - 1))
            zero = float(round(-low / scale)) if scale else 0.0
        if lie("bad_scales"):
            scale = [0.0, -scale, float("nan")][number % 3]
        self.values[str(number)] = {"scale": [_f32(scale)], "zero_point": [zero]}

    def record(self):
        """What quant_axmodel.json holds."""
        inputs = {entry["tensor_name"]: {} for entry in self.quant["input_configs"]}
        if "DEFAULT" in inputs:
            inputs = {name: {} for name in self.graph.inputs}
        configs = self.configs
        if lie("unknown"):
            for number, entry in enumerate(entry for entries in configs.values() for entry in entries.values()):
                entry |= [{"state": "DEFERRED"}, {"bit_width": 12}, {"state": 3, "bit_width": "8"}, {}][number % 4]
        record = {
            "quant_config": {"input_configs": inputs, "mix_precision_configs": self.selectors},
            "tensor_configs": configs,
            "dispatchings": {operator.name: "AX_NPU_AX650_INT8" for operator in self.operators},
            "values": self.values,
        }
        if lie("extra"):
            record["format_version"] = 3
            record["quant_config"]["observers"] = ["MinMax"]
        if lie("schema") == "configs":
            record["configs"] = record.pop("tensor_configs")
            del record["quant_config"]
        elif lie("schema"):
            record = {
                "version": 9,
                "operators": [{"id": n, "tensors": list(t)} for n, t in enumerate(configs.values())],
            }
        return record

    def census(self):
        states = [entry["state"] for entries in self.configs.values() for entry in entries.values()]
        return {state: states.count(state) for state in sorted(set(map(str, states)))}

    def products(self, operator):
        """Multiplications of an operator."""
        if operator.kind not in ("Gemm", "FullyConnected", "MatMul"):
            return 0
        first = self._shape(operator.inputs[0])
        return size(self._shape(operator.outputs[0])) * (first[-1] if first else 1)

    def _shape(self, name):
        return self.graph.tensors.get(name, (FLOAT, []))[1]

    def frontend(self):
        """frontend/optimized.onnx: the float graph whose names layer_names must use."""
        used = {name for operator in self.operators for name in operator.inputs}
        return Graph(
            [Node(one.name, one.kind, one.inputs, one.outputs, one.attributes) for one in self.operators],
            {name: tensor for name, tensor in self.graph.initializers.items() if name in used},
            {name: self.graph.tensors[name] for name in self._left() if name in self.graph.tensors},
            self.graph.inputs,
            self.graph.outputs,
        )

    def _left(self):
        return [*self.graph.inputs, *(name for operator in self.operators for name in operator.outputs)]

    def compiled(self, bytes_in=None, normalize=False):
        """quant/quant_axmodel.onnx: quantised operators, requantisations, the edges that exist."""
        graph, inputs, outputs = Graph(outputs=list(self.graph.outputs)), self.graph.inputs, self.graph.outputs
        now = {}  # what a tensor of the graph is called here
        for name in inputs:
            before = name
            shape = self._shape(name)
            graph.inputs.append(name)
            graph.tensors[name] = UINT8, [shape[place] for place in (0, 2, 3, 1)] if len(shape) == 4 else shape
            steps = ["AxDequantizeLinear", *(["AxNormalize"] if normalize else []), "Pre_AxTranspose"]
            for number, op in enumerate([*steps, "AxQuantizeLinear"]):
                after = f"op:pre_{op}_{number}_out"
                graph.nodes.append(Node(f"op:pre_{op}_{number}", op, [before], [after]))
                last = op == "AxQuantizeLinear"
                graph.tensors[after] = (ELEMENT[self.types[name]] if last else FLOAT), shape
                before = after
            now[name] = before
        readers = {}
        for operator in self.operators:
            for name in self.data(operator):
                readers.setdefault(name, []).append(operator)
        for number, operator in enumerate(self.operators):
            reads = []
            for name in operator.inputs:
                if name in self.graph.initializers:
                    graph.initializers[self._baked_name(operator, name)] = self._stored(operator, name)
                    reads.append(self._baked_name(operator, name))
                elif name:
                    kind = self.reads[operator.name, name]
                    reads.append(self._requantised(graph, now[name], name, kind, f"op_{number}_{len(reads)}"))
            (name, *more), after = operator.outputs, readers.get(operator.outputs[0], [])
            merges = operator.kind in MERGED and len(after) == 1 and not more and name not in outputs
            if merges and after[0].kind in MERGED and self.reads[after[0].name, name] == self.types[name]:
                now[name] = reads[0]
                continue
            for name in operator.outputs:
                now[name] = f"{name}_quantized" if name in outputs else name
                graph.tensors[now[name]] = ELEMENT[self.types[name]], self._shape(name)
            named = [now[name] for name in operator.outputs]
            graph.nodes.append(Node(operator.name, quantized_name(operator), reads, named))
            for name in set(operator.outputs) & set(outputs):
                graph.nodes.append(Node(f"op:post_dequant_{number}", "AxDequantizeLinear", [now[name]], [name]))
                graph.tensors[name] = FLOAT, self._shape(name)
        return graph

    def _requantised(self, graph, name, tensor, kind, label):
        """The tensor at the type that its reader wants; another one where it has to be made."""
        have = self.types[tensor]
        if have == kind:
            return name
        op = "AxRequantizeLinear"
        if 32 in (have[0], kind[0]):
            op = "AxDequantizeLinear" if kind[0] == 32 else "AxQuantizeLinear"
        graph.nodes.append(Node(f"{label}:{op}", op, [name], [f"{label}:{op}_out"]))
        graph.tensors[f"{label}:{op}_out"] = ELEMENT[kind], self._shape(tensor)
        return f"{label}:{op}_out"

    def _stored(self, operator, name):
        tensor = self.graph.initializers[name]
        entry = self.configs[operator.name][self._baked_name(operator, name)]
        if entry["state"] != "BAKED":
            return tensor
        return Initializer(ELEMENT.get((entry["bit_width"], entry["quant_min"] < 0), UINT8), tensor.dims)


def fuse(graph):
    """The operators that are left of the nodes, one `pre_Reshape` in front of each batched product of activations."""
    kept, place = [], 0
    unfused = (lie("unfused") or "").split("+")
    while place < len(graph.nodes):
        node = graph.nodes[place]
        types = tuple(node.op for node in graph.nodes[place : place + 6])
        found = [(parts, name) for parts, name in CHAINS.items() if types[: len(parts)] == parts]
        if found and found[0][1] not in unfused:
            parts, kind = found[0]
            members = graph.nodes[place : place + len(parts)]
            made = {name for member in members for name in member.outputs}
            reads = [name for member in members for name in member.inputs if name not in made]
            values = [name for name in dict.fromkeys(reads) if name not in graph.initializers][:1]
            gain = [name for name in members[-1].inputs if name in graph.initializers]
            inner = [name for member in members[:-1] for name in member.outputs]
            label = f"op_{place}:onnx.{kind}"
            kept.append(Operator(members[-1], label, f"onnx.{kind}", values + gain, inner))
            place += len(parts)
            continue
        place += 1
        weighted = node.op == "MatMul" and node.inputs[1] in graph.initializers
        if weighted or (node.op == "Gemm" and lie("gemm_renamed")):
            kept.append(Operator(node, f"op_{place}:onnx.FullyConnected", "onnx.FullyConnected"))
        elif node.op == "MatMul" and len(graph.tensors.get(node.inputs[0], (0, []))[1]) == 4:
            label = f"op_{place}:onnx.pre_Reshape"
            shape = graph.tensors[node.inputs[0]][1]
            graph.tensors[f"{label}_0"] = FLOAT, [shape[0] * shape[1], *shape[2:]]
            before = Node(label, "onnx.pre_Reshape", node.inputs[:1], [f"{label}_0"])
            kept += [Operator(before), Operator(node, inputs=[f"{label}_0", node.inputs[1]])]
        else:
            kept.append(Operator(node))
    return kept


def quantized_name(operator):
    """What an operator is called in quant_axmodel.onnx."""
    kind = operator.kind.removeprefix("pre_")
    plain = kind in PASSIVE or kind == "Softmax" or operator.asked == "FP32"
    return f"Ax{kind}" if plain else f"AxQuantized{QUANTIZED.get(kind, kind)}"


def combine(types):
    """The one type of a tensor whose readers want these: the widest, unsigned unless all agree; None without any."""
    if len(types) <= 1:
        return next(iter(types), None)
    return max(bits for bits, _ in types if bits < 32), False


def plausible(name):
    """A range that a tensor of this name might have."""
    number = zlib.crc32(name.encode())
    high = 0.5 + number % 997 / 100
    if "softmax" in name or "sigmoid" in name or "sqrt" in name:
        return 0.0, high / 10.5
    return -high * (0.5 + number % 13 / 13), high


def size(shape):
    count = 1
    for dim in shape:
        count *= dim
    return count


def _add(reached, given, more):
    """Whether one of `given` was reached; then `more` is as well."""
    if reached.isdisjoint(given):
        return False
    reached.update(more)
    return True


def _f32(value):
    """A number as a float32 holds it."""
    return struct.unpack("<f", struct.pack("<f", value))[0]
