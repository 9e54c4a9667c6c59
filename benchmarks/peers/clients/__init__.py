"""The peers: small programs, each run in an environment of its own that knows nothing of this project.

They share how rows are merged (merge) and differ in what reads, writes and remembers. Each prints a line for
each batch that it has finished: how many records, and when, in seconds since 1970.
"""
