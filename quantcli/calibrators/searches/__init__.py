"""Searches shared by calibrators and available to others: ranges and histograms of weights that lie in several tiles,
optimal levels, scales by trial and by a sweep over all breakpoints."""
