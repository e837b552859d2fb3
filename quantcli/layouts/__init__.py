"""How each tool stores a quantized weight: what its bytes mean, read and written."""
