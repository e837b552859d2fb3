"""E4M3 alone: an 8-bit float for every group and no scale of the tensor, as in MLX's NVFP4.

Its smallest number is 2^-9, and from 2^-6 down it has less than three bits: scales of small weights, of which those of
trained models mostly are, are coarse, and a search among them gains the more.
"""

from __future__ import annotations

from dataclasses import replace

from quantcli.scales import e4m3

PROVIDES = replace(e4m3.PROVIDES, overall=None)
