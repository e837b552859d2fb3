"""What is asked of a model, and what becomes of every tensor before a weight is read."""
