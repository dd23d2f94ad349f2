"""Quantised checkpoints: one file per family of formats, and the folder of plain weights that is made of them."""
