"""Spaces of inputs, searched by a seed: a fixed part of each in `make test`, as much as you like
by hand (docs/testing.md).
"""
