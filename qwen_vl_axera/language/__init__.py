"""The language side of the text comparison: prompt, template, positions, the model."""
