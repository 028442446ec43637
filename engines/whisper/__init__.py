"""Encoder-decoder models: features, decoding token by token, texts."""
