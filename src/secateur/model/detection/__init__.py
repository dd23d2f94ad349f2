"""Architectures that the table doesn't list: found on a small copy of the same class, and proved there."""
