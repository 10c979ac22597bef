"""From a tower to ONNX: traced without weights, lowered by a table, its weights streamed beside it."""
