"""The compiled tower simulated on the host: what 8 and 16 bits cost, and which layers tolerate 8."""
