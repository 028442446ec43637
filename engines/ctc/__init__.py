"""Models with one label a frame: what goes before and after their graph."""
