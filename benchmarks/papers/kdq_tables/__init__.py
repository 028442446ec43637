"""Whisper-KDQ's Table 1 and Table 2 from trained students."""
