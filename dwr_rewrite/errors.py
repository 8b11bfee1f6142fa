"""The two ways in which something can be refused: a value for a site, an exception for a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a convolution is left as it is.

    Attributes:
        code: short machine-readable tag, stable between releases (``"quantized-op"``).
        reason: one sentence for a person; says what was found and, where there is one, the remedy.
    """

    code: str
    reason: str


class DwrError(Exception):
    """Bad usage or bad input. The message names the thing, what was found and what to do.

    ``exit_code`` is what the command line returns for it.
    """

    exit_code = 2


class NotEquivalentError(DwrError):
    """The rewritten model could not be shown to compute the same function; nothing was written."""

    exit_code = 1

    def __init__(self, message: str, report: Any = None) -> None:
        """Keeps the report of the failed run, so that a caller can look at the figures."""
        super().__init__(message)
        self.report = report
