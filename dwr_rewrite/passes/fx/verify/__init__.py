"""Torch models, checked for equivalence: what :mod:`dwr_rewrite.equivalence` needs of them."""
