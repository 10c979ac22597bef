"""The directory that goes to the board: files, runtime settings, tokenizer, manifest."""
