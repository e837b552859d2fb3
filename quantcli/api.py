"""Calls on whole models, for Python: what the commands do, without a terminal. They give reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike, fspath
from typing import TYPE_CHECKING

from quantcli.errors import UsageError
from quantcli.models import open_model, under_one_name
from quantcli.passes import compare as comparing
from quantcli.passes.tiles import default_threads
from quantcli.reports import build
from quantcli.stores import need_file

if TYPE_CHECKING:
    from quantcli.passes.tiles import Progress
    from quantcli.reports.records import RunReport

    Path = str | PathLike[str]


def compare(
    before: Path,
    after: Path,
    *,
    threads: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """What `after` costs against `before`, tensor by tensor: errors of the decoded weights, bytes of the files.

    Both are files or checkpoint folders: float, quantcli's own, or another tool's that quantcli decodes. threads: 0 for
    one on each processor. progress: told how far the work is, in bytes; say: told how tensors found each other where
    their names differ.

    Raises QuantcliError for what cannot be read, DataError where shapes differ or no tensor is in both.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (os.path.join(folder, name) for name in ("a.npz", "b.npz"))
    ...     np.savez(a, weight=np.array([[1.0, 2.0]]))
    ...     np.savez(b, weight=np.array([[1.0, 2.5]]))
    ...     compare(a, b).tensors[0].mse
    0.125
    """
    began, paths = time.perf_counter(), (fspath(before), fspath(after))
    if paths == ("-", "-"):
        raise UsageError("one model is not two", place=["-"])
    with open_model(paths[0]) as a, open_model(paths[1]) as b:
        for model in (a, b):
            need_file(model.source, "comparing")
            model.stored.check_headers()
        ours, theirs, note = under_one_name(a, b)
        if note:
            say(note)
        pairs, new, vanished = comparing.pairs_of(ours, theirs, paths[1])
        found = comparing.measure(pairs, threads=threads or default_threads(), progress=progress)
        return build.of_pairs(
            pairs,
            found,
            (new, vanished),
            source=paths[0],
            output=paths[1],
            bytes_in=a.file_bytes,
            bytes_out=b.file_bytes,
            seconds=time.perf_counter() - began,
        )
