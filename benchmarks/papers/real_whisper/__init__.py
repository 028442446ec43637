"""Whisper checkpoints at W8A8 on real speech, beside faster-whisper and transformers: one page."""
