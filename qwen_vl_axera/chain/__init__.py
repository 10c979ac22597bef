"""One step of export_video.sh: run it, or skip it when its inputs and outputs are unchanged. Standard library only."""
