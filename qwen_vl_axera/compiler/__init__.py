"""Pulsar2, the NPU compiler: its commands, its container, its configuration and what must agree with it."""
