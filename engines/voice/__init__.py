"""Where something is said in audio, and recognizers that hear that alone."""
