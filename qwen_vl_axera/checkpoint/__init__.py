"""A checkpoint directory: its configuration, its safetensors files read tensor by tensor, its embeddings."""
