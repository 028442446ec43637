"""The `speechquant` command and the wiring of the steps."""
