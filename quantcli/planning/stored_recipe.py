"""The recipe that a quantized model was made by, from the headers of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantcli.errors import DataError, QuantcliError, printable
from quantcli.planning import recipe, recipe_writing

if TYPE_CHECKING:
    from quantcli.models import Model


def text_of(model: Model, path: str) -> str:
    """The recipe in YAML. Raises DataError when there is none, or several."""
    documents = model.stored.documents
    try:
        said = [(d, recipe.request_of(d.recipe, d.schemes)) for d in documents if d.recipe is not None]
    except QuantcliError as error:
        raise error.within(path) from None
    if not said or len(said) < len(documents):
        raise DataError("the header holds no recipe", place=[path], hint="quantcli quantize writes one")
    document, request = said[0]
    if any(d.tool != document.tool or d.digest != document.digest or r != request for d, r in said):
        raise DataError("the files were made with several recipes", place=[path], hint="name one of them")
    keeps = any(tensor.stored.reason == "nonfinite" for tensor in model.stored.values())
    settings = {"digest": document.digest, "on_nonfinite": "keep" if keeps else "refuse"}
    return f"# {printable(document.tool, 100)}\n{recipe_writing.dump(request, settings)}"
