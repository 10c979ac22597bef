"""Is the graph transformers' tower? Numbers first, then text; and the compiled model's numbers."""
