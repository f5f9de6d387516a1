"""Checkpoints: a folder is read, its weights are reduced in a stream, another folder is written and verified."""
