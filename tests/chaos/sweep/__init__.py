"""The kill sweep: a worker that ends itself by SIGKILL right before, or right after, each
await on the path of a batch.

The await points are found in the code itself. For each one a worker with an import hook runs a scene that
reaches it and dies there; then a healthy worker goes on, and the audit has to be clean.
"""
