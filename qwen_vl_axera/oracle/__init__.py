"""What transformers makes of a clip: computed once, saved, and read again by every later step."""
