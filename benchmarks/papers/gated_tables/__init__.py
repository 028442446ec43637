"""The tables and figures of the gated-attention paper, of students and of other checkpoints."""
