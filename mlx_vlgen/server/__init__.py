"""The server: an engine behind the interfaces that programs speak."""
