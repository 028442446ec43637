"""What every step shares."""
