"""Graphs opened with changes: rounded by any table at run time, or with more outputs."""
