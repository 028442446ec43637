"""ONNX Runtime: its sessions, its engines, and the graph its CPU kernels are fastest on."""
