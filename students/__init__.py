"""Smaller Whispers trained from larger ones: gated attention and distillation."""
