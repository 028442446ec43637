"""What the structure of an audio file says of its length, without decoding it."""
