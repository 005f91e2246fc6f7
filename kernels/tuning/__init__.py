"""Tile shapes: the table, the kernels compiled ahead of time, a model of what a tile costs."""
