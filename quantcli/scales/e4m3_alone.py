"""E4M3 alone: an 8-bit float for every group and no scale of the tensor, as in MLX's NVFP4.

Its smallest number is 2^-9, and below 2^-6 it has fewer than three bits behind the point: the scales of small weights,
as trained models mostly have, are coarse, and a search among them gains more.
"""

from __future__ import annotations

from dataclasses import replace

from quantcli.scales import e4m3

PROVIDES = replace(e4m3.PROVIDES, overall=None)
