"""What calibrators share, and what others may use of it: ranges and histograms of weights that lie in several tiles,
optimal levels, scales by trial and by a sweep over all breakpoints."""
