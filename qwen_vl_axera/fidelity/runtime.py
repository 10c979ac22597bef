"""ONNX Runtime in the vision tower's place, one temporal step at a time."""

import os
from pathlib import Path

import numpy as np
import onnx

from preprocess import normalize, to_graph_input
from qwen_vl_axera.contract import INPUT_NAME
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.graph.files import check_data, load_graph, read_spec
from qwen_vl_axera.towers import find_tower

# ONNX Runtime's name for where a model that comes from memory has its data file.
DATA_DIRECTORY = "session.model_external_initializers_file_folder_path"


class OnnxTower:
    """A vision graph in ONNX Runtime.

    Args:
        path: `NAME_vision.onnx` or `NAME_vision_uint8.onnx`; its data file beside it.
        threads: of ONNX Runtime; 0 takes all cores.
        model: the graph as it shall run, where that is not what the file holds; its data file stays the same.

    Attributes:
        spec: what `export.py` made the graph for.
        num_patches: S of one step.

    Raises:
        InputError: the file is missing, broken, or no graph of this converter.
    """

    def __init__(self, path: Path, threads: int = 0, model: onnx.ModelProto | None = None):
        import onnxruntime

        self.path = Path(path)
        graph = load_graph(self.path)
        self.spec = read_spec(graph, self.path)
        check_data(graph, self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # its errors are raised, too; raw lines on the terminal are nobody's message
        # Packed copies of the weights would double the memory for a few percent of speed.
        options.add_session_config_entry("session.disable_prepacking", "1")
        source: str | bytes = os.fspath(self.path)
        if not source.isascii() and source != source.encode("utf-8", "replace").decode():
            raise InputError(f"{self.path}: ONNX Runtime takes no path that is no UTF-8: use another place")
        if model is not None:
            source = model.SerializeToString()
            options.add_session_config_entry(DATA_DIRECTORY, os.fspath(self.path.parent.resolve()))
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no public base class for its errors
            raise InputError(f"{self.path}: ONNX Runtime cannot load it: {str(error)[:300]}") from None
        graph_input = self.session.get_inputs()[0]
        self.uint8 = graph_input.type == "tensor(uint8)"
        self.num_patches = graph_input.shape[1 if self.uint8 else 2]

    def step(self, patches: np.ndarray) -> np.ndarray:
        """The merged tokens of one step.

        Args:
            patches: uint8 (S, 392, 3).

        Returns:
            float32 (S/4, out_hidden) in reading order; of several outputs, their channels one after the other.

        Raises:
            InputError: S is not the graph's.
        """
        if len(patches) != self.num_patches:
            raise InputError(
                f"{self.path}: made for {self.num_patches} patches a step ({self.size}), got {len(patches)}"
            )
        return np.concatenate(self.session.run(None, {INPUT_NAME: self.graph_input(patches)}), -1)

    def graph_input(self, patches: np.ndarray) -> np.ndarray:
        """uint8 (S, 392, 3) as this graph takes it."""
        if self.uint8:
            return patches[None]
        if self.spec.input == "pixels":
            return to_graph_input(patches)
        tower = find_tower(self.spec.tower)
        return normalize(patches, tower.mean, tower.std)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """uint8 (T, S, 392, 3) -> float32 (T·S/4, out_hidden)."""
        return np.concatenate([self.step(step) for step in patches])

    @property
    def size(self) -> str:
        return "x".join(map(str, self.spec.size))
