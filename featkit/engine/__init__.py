"""Stages on one machine or many: a plan of write-once shards, run by Ray or by a job array, joined by an index."""
