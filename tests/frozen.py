"""Imported last by the process that tests fork others from: no fork looks at what was imported before."""

import gc

gc.collect()
gc.freeze()
