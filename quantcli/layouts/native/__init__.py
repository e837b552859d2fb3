"""The native layout: codes, scales and zero points in a safetensors file with one document in its header."""
