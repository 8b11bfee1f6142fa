"""A report read back from its JSON, and what a reader looks for in it, in words and figures."""
