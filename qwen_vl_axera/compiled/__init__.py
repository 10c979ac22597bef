"""What a build left behind: its records read, and the compiled model against the ONNX graph."""
