"""Benchmarks: what the gateway costs, always as a ratio to something plain on the same machine."""
