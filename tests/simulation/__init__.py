"""The pipeline in one process, on servers that fail as a seed tells. See docs/testing.md.

python -m tests.simulation --help
"""
