"""Studies that print tables and write JSON under benchmarks/results/<device>/."""
