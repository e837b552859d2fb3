"""How much the squared error of a tensor counts beside those of others, where schemes are chosen for a budget.

`relative` divides each tensor's by its power, so that a layer counts by what its output loses for white input;
`absolute` adds them as they are; `balanced`, the default, is `relative` times the number of weights to the power of
5/8. On ResNet-20, Silero VAD and MiniLM, at the sizes of 3 and 4 bits in groups of 64 and 128, `balanced` was end to
end as good as that single scheme or better in 10 of 12 cases, often by far, and within 0.006 in the others; `relative`
and `absolute` starve the large matrices of a transformer, the power of 3/4 and 1 lost on ResNet-20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantcli.errors import UsageError, printable
from quantcli.metrics import Metrics
from quantcli.patterns import matching
from quantcli.stores.places import read_small
from quantcli.strict import LIMIT, plain
from quantcli.tensors.decided import Decided

WEIGHTINGS = ("balanced", "relative", "absolute")


def factors(path: str, names: Sequence[str]) -> dict[str, float]:
    """How much each tensor's relative error counts, from a YAML map of patterns to numbers; 1 where none matches, the
    last that matches decides. Raises UsageError for patterns without a match and for a file that is not such a map."""
    document = plain(read_small(path, LIMIT), path)
    if not isinstance(document, dict) or not document:
        raise UsageError("it is not a map of patterns to numbers", place=[path])
    found = dict.fromkeys(names, 1.0)
    for pattern, value in document.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UsageError(f"{printable(repr(value), 60)} is not a number of 0 or more", place=[path, str(pattern)])
        found |= dict.fromkeys(matching([str(pattern)], names, path), float(value))
    return found


def weight(tensor: Decided, metrics: Metrics, weighting: str | Mapping[str, float]) -> float:
    """How much the squared error of a tensor counts. Where the importance of columns is known, relative means: to the
    power all columns would have with the median importance. Relative to the power they do have, a few columns that
    are used a thousand times as strongly made MiniLM's layers look good at 2 bits (cosine 0.948 instead of 0.962)."""
    if weighting == "absolute":
        return 1.0
    power, numel = metrics.power, metrics.numel
    if tensor.columns is not None:
        power *= tensor.columns.typical
    factor = weighting[tensor.info.name] if not isinstance(weighting, str) else 1.0
    if weighting == "balanced":
        eighth = math.sqrt(math.sqrt(math.sqrt(numel)))
        factor = eighth * eighth * eighth * eighth * eighth  # pow differs between machines, square roots do not
    return factor / power if power > 0 else 0.0
