"""From `quant.layer_configs` to the data type of every operator, as the compiler decides it.

A layer's own entry wins over one for its operator type, that over one for a part of the graph, and that over DEFAULT;
without any, U8. What the compiler ignores in silence is refused here, or noted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qwen_vl_axera.compiler.schema import BuildConfig, LayerConfig, nearest
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.quantization.network import PASSIVE, Network, Operator

EVERY_TENSOR = "DEFAULT"
UNCONFIGURED = "U8"
FLOAT = "FP32"
# FP32 was verified by the vendor for these; for others it was seen to do nothing at all.
FLOAT_OPERATORS = {"Add", "Concat", "Div", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Softmax", "Sub"}


@dataclass(frozen=True)
class Plan:
    """The precision of a compiled model.

    Attributes:
        types: operator name -> data type of its inputs; passive operators have none.
        notes: what the configuration says and the compiler is believed not to do.
    """

    types: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def bits(self, operator: Operator) -> int:
        """8, 16 or 32."""
        return {"8": 8, "6": 16, "2": 32}[self.types[operator.name][-1]]


def uniform(network: Network, data_type: str) -> Plan:
    """Every operator of one type."""
    return Plan({operator.name: data_type for operator in network.operators if not operator.passive})


def read_plan(network: Network, config: BuildConfig) -> Plan:
    """Interprets a build configuration for a graph.

    Raises:
        InputError: an entry names nothing in the graph or what a fusion removes, or two entries of the same priority
            give one operator different types.
    """
    if config.quant.calibration_method != "MinMax":
        raise InputError(f"calibration_method {config.quant.calibration_method}: only MinMax is simulated")
    plan = uniform(network, UNCONFIGURED)
    entries = [(f"quant.layer_configs[{number}]", entry) for number, entry in enumerate(config.quant.layer_configs)]
    for select in (_everything, _part, _operator_type, _layer):  # from the lowest priority to the highest
        chosen: dict[str, tuple[str, str]] = {}
        for place, entry in entries:
            for operator in select(network, entry, place):
                if entry.data_type == FLOAT and operator.op_type not in FLOAT_OPERATORS:
                    plan.notes.append(f"{place}: FP32 has no effect on {operator.op_type} ({operator.name})")
                    continue
                before = chosen.setdefault(operator.name, (entry.data_type, place))
                if before[0] != entry.data_type:
                    raise InputError(
                        f"{place} gives {operator.name} {entry.data_type}, {before[1]} gives it {before[0]}: "
                        "which of the two the compiler takes is not known; keep one"
                    )
        plan.types.update({name: data_type for name, (data_type, _) in chosen.items()})
    plan.notes.extend(_without_effect(entries))
    plan.notes.extend(_not_simulated(config))
    return plan


def _everything(network: Network, entry: LayerConfig, place: str) -> Iterator[Operator]:
    if EVERY_TENSOR in (*entry.start_tensor_names, *entry.end_tensor_names):
        if list(entry.start_tensor_names) != [EVERY_TENSOR] or list(entry.end_tensor_names) != [EVERY_TENSOR]:
            raise InputError(f"{place}: DEFAULT stands for the whole model on both sides, or on none")
        yield from _computing(network)


def _part(network: Network, entry: LayerConfig, place: str) -> Iterator[Operator]:
    """Operators between tensors: behind one of the first and in front of one of the last."""
    if not entry.start_tensor_names or EVERY_TENSOR in (*entry.start_tensor_names, *entry.end_tensor_names):
        return
    known = [network.input, *network.producers]
    _check_known([*entry.start_tensor_names, *entry.end_tensor_names], known, place, "tensor")
    behind, front = set(entry.start_tensor_names), set(entry.end_tensor_names)
    for operator in network.operators:
        if behind & set(operator.inputs):
            behind |= set(operator.outputs)
    for operator in reversed(network.operators):
        if front & set(operator.outputs):
            front |= set(operator.inputs)
    found = [
        operator for operator in _computing(network) if behind & set(operator.inputs) and front & set(operator.outputs)
    ]
    if not found:
        raise InputError(f"{place}: no operator lies between these tensors")
    yield from found


def _operator_type(network: Network, entry: LayerConfig, place: str) -> Iterator[Operator]:
    """By ONNX operator; a fused operator has none that the compiler would look for."""
    names = [name for name in (entry.op_type, *entry.op_types) if name]
    known = {node.op_type for node in network.model.graph.node}
    _check_known(names, known, place, "operator type")
    yield from (operator for operator in _computing(network) if operator.op_type in names and not operator.fused)


def _layer(network: Network, entry: LayerConfig, place: str) -> Iterator[Operator]:
    names = [name for name in (entry.layer_name, *entry.layer_names) if name]
    removed = {node.name: operator for operator in network.operators if operator.fused for node in operator.nodes}
    for name in names:
        if name in removed:
            raise InputError(
                f"{place}: {name} is part of a {removed[name].op_type} after fusion, and the compiler stops at names "
                "that are gone; select it by tensors, or use --unfused where your compiler keeps it"
            )
    known = {operator.name for operator in network.operators}
    _check_known(names, known, place, "layer")
    yield from (network.by_name[name] for name in names if not network.by_name[name].passive)


def _computing(network: Network) -> Iterator[Operator]:
    return (operator for operator in network.operators if not operator.passive)


def _check_known(names: Sequence[str], known, place: str, kind: str) -> None:
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close}?" if close else "copy it from the graph"
            raise InputError(
                f"{place}: the graph has no {kind} {name!r}; the compiler would ignore it in silence; {hint}"
            )


def _without_effect(entries: Sequence[tuple[str, LayerConfig]]) -> Iterator[str]:
    for place, entry in entries:
        idle = sorted({name for name in (entry.op_type, *entry.op_types) if name in PASSIVE})
        if idle:
            yield f"{place}: a type on {', '.join(idle)} has no effect: a tensor has the type of what consumes it"


def _not_simulated(config: BuildConfig) -> Iterator[str]:
    quant = config.quant
    for name in (
        "enable_smooth_quant",
        "highest_mix_precision",
        "enable_easy_quant",
        "enable_brecq",
        "enable_lsq",
        "enable_adaround",
    ):
        if getattr(quant, name):
            yield f"quant.{name} is not simulated"
    if quant.conv_bias_data_type != "FP32":
        yield "quant.conv_bias_data_type S32: biases are simulated in float"
