"""Write quantcli/architectures/diffusers.json: which weights of the models of diffusers no plain Linear layer holds.

    python tests/peers/write_diffusers.py quantcli/architectures/diffusers.json

with diffusers beside torch. Every class is built on the meta device from its default configuration; those that have
none are left out, and names decide.
"""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import diffusers  # noqa: E402
import diffusers.models  # noqa: E402
import torch  # noqa: E402

SECONDS = 60
"""What building one model may take."""


def numberless(name: str) -> str:
    """A name with # for its numbers, as quantcli.architectures has it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def stop(*_: object) -> None:
    raise TimeoutError


def facts(kind: Any) -> dict[str, Any] | None:
    """What a class makes of its matrices; None where it cannot be built."""
    signal.alarm(SECONDS)
    try:
        with torch.device("meta"):
            model = kind()
    except Exception as error:
        print(f"{kind.__name__}: {error!r:.100}", file=sys.stderr)
        return None
    finally:
        signal.alarm(0)
    other = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim == 2 and not isinstance(module, torch.nn.Linear):
            other[numberless(name)] = type(module).__name__
    return {"other": other, "float32": kind._keep_in_fp32_modules or []}


def main() -> None:
    signal.signal(signal.SIGALRM, stop)
    classes = {}
    for name in sorted({n for names in diffusers.models._import_structure.values() for n in names}):
        kind = getattr(diffusers, name, None)
        if inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin) and (found := facts(kind)) is not None:
            classes[name] = found
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in classes.items())
    text = f'{{"diffusers": {json.dumps(diffusers.__version__)}, "classes": {{\n{rows}\n}}}}\n'
    Path(sys.argv[1]).write_text(text, "ascii")


if __name__ == "__main__":
    main()
