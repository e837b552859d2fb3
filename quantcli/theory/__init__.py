"""Bounds and distributions from the literature, with which measured figures are compared."""
