"""Everything about Pulsar2, the NPU compiler, that can be known before it runs: configuration, container, checks."""
