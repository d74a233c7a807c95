"""Parameters of a notebook, checked before the work starts: papermill only warns of a name that it
does not know."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

# names that IPython puts into every notebook
_IPYTHON = {"In", "Out", "get_ipython", "exit", "quit", "open", "check_parameters", "AtLeast"}


class AtLeast(NamedTuple):
    """The rule of a parameter that is a whole number of at least `least`."""

    least: int


def check_parameters(
    namespace: MutableMapping[str, Any], allowed: Mapping[str, type | tuple | AtLeast | None]
) -> None:
    """Refuse what papermill only warns of: an unknown parameter, a value of the wrong type, a
    choice that does not exist.

    Args:
        namespace: `globals()` of the notebook, right after the parameters.
        allowed: for each parameter its type (int passes for float), `AtLeast` a number, or a tuple
            of the values that it may take; a type in a one-element list allows None too.
    """
    given = {k for k in namespace if not k.startswith("_") and k not in _IPYTHON}
    # the second time round, in the same kernel, the notebook's own names are there too
    unknown = [] if namespace.get("_parameters_checked") else sorted(given - {*allowed})
    missing = sorted({*allowed} - given)
    if unknown or missing:
        raise ValueError(
            f"unknown parameters {unknown}, missing {missing}: this notebook takes "
            f"{', '.join(allowed)}"
        )
    for name, rule in allowed.items():
        value = namespace[name]
        if isinstance(rule, AtLeast):
            if not isinstance(value, int) or isinstance(value, bool) or value < rule.least:
                raise ValueError(
                    f"{name}={value!r}: expected a whole number of at least {rule.least}"
                )
            continue
        if isinstance(rule, tuple):
            if value not in rule or not isinstance(value, type(rule[0])):
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, rule))}")
            continue
        optional = isinstance(rule, list)
        kind = rule[0] if isinstance(rule, list) else rule
        assert kind is not None
        if optional and value is None:
            continue
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(
            value, bool
        ):
            raise ValueError(
                f"{name}={value!r} is a {type(value).__name__}, expected "
                f"{kind.__name__}{' or None' if optional else ''}"
            )
    namespace["_parameters_checked"] = True
