"""Do two models compute the same function? Numbers and bookkeeping only, no framework.

``tolerance`` derives what may differ, ``comparison`` holds one output against it, ``statistics``
describes the differences, ``evidence`` and ``verification`` are what was found, and ``check`` runs
two :class:`~dwr_rewrite.equivalence.check.Subject` on the same inputs.
"""
