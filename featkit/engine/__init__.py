"""Stages on one or many machines: a plan of write-once shards, run by Ray or a job array, joined by an index."""
