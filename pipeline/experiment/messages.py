"""What is wrong with a configuration, in plain words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from jsonschema.exceptions import ValidationError

LONGEST = 500
"""Characters of a message."""


def explain(error: ValidationError) -> str:
    """Return a schema error in plain words, with its place and the nearest known key."""
    if isinstance(error.parent, ValidationError) and error.parent.validator == "oneOf":
        error = error.parent
    place = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        for key in error.instance:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}."
                return f"{place}: unknown key {short(repr(key))}{hint}"
    if error.validator == "required":
        return f"{place}: {error.message.replace('is a required property', 'is missing')}."
    if error.validator == "oneOf" and place.endswith("weights"):
        return f"{place}: give exactly one of package, hub, folder or random."
    described = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    message = short(error.message)
    if error.validator == "type" and isinstance(error.instance, str) and is_number(error.instance):
        message += ", but text; YAML reads 1e-3 as text and 1.0e-3 as a number"
    return f"{place}: {message}." + (f" ({described})" if described else "")


def short(value: object) -> str:
    """Return a value on one line of bearable length."""
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"


def printable(message: str) -> str:
    """Return a message as one line that shows on any terminal, whatever it quotes."""
    shown = (x if x.isprintable() else x.encode("unicode_escape").decode() for x in message)
    text = "".join(shown)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def is_number(text: str) -> bool:
    """Tell whether Python reads as a number what YAML left as text."""
    try:
        float(text)
    except ValueError:
        return False
    return True
