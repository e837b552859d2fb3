"""Passes over the weights of a model: what is read, made, measured and written, tile by tile."""
