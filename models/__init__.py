"""Builders of the networks that the tests, the demo and the benchmarks use."""
