"""Batch transport for Faust: Kafka's records in batches, nothing acknowledged before
it is done, nothing lost.

What holds:

- A handler gets a partition's records in order and without a hole, and again if it did not return.
- Only offsets below the lowest unfinished batch are committed.
- A worker that lost its partitions writes nothing any more.
- The changelog has a state before the local store has it.
"""
