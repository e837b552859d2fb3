"""Models of pictures and films in the GGUFs that ComfyUI-GGUF loads.

A file holds the part that predicts noise alone, under ComfyUI's names and with few keys.
"""
