"""Other tools' versions of a bundle."""
