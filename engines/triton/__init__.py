"""A model in NVIDIA's Triton: the repository that it reads, and what runs in its Python backend."""
