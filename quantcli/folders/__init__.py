"""Checkpoint folders: shards, index, configuration, model card, resuming."""
