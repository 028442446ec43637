"""From what a model's activations looked like to the scales they are quantized with; NumPy only."""
