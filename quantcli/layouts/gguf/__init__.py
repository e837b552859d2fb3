"""GGUF, the container of llama.cpp: its blocks, its names, its metadata."""
