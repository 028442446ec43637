"""TensorRT and TensorRT-RTX: building an engine, and running it on a GPU."""
