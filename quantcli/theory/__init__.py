"""Bounds and distributions of the literature, which figures are set beside."""
