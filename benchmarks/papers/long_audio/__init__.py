"""Twelve minutes of joined clips through a real Whisper."""
