"""The synthetic corpus and the small trained models."""
