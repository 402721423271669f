"""The commands of `python -m maskfuse`."""
