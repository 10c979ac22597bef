"""The demo model: its clips, its training from nothing, its evaluation."""
