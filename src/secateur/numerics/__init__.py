"""Tensor mathematics shared by all rooms: statistics of inputs, shapes of zeros, solves. Torch only."""
