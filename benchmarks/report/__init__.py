"""The record of a bench, and the pages that are made of it."""
