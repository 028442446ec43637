"""What rewrites and reads a graph, whatever backend it is for."""
