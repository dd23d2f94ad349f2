"""Cutting one block: structured sites (`units`) and single weights (`weights`)."""
