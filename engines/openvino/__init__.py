"""OpenVINO: the plugin of ONNX Runtime, the package of its own, and the graph both like."""
