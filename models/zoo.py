"""The table of all networks, by name."""

from __future__ import annotations

from models import mobilenet_v1, transformers_zoo

ZOO = {entry.name: entry for entry in (mobilenet_v1.entry(), *transformers_zoo.ENTRIES)}
