"""Hostile files for the commands that read them: see scripts/fuzz.py."""
