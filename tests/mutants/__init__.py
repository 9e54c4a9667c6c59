"""Planted bugs: each .patch here breaks the pipeline in one way, and something has to notice.
See docs/testing.md.

python -m tests.mutants --help
"""
