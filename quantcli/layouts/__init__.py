"""Layouts: how each tool stores a weight. One module or package per tool.

Each begins with a picture of the bytes, and offers READS (a reader.Reader: which tensors are weights in this layout,
and how they are decoded), WRITES (a writer.Writer: which schemes it can store, and how a model is converted), or both.
Reading and writing share facts such as the order of bits, but no code, so that a round trip does not test itself. A new
layout is a file: `registry` finds it by its name, which is the name that --to takes.

Shared modules: reader and writer (what a layout offers), config and loaders (the configuration of a model, and what
the tools can load), stored (parts of a stored weight as float32), transposed (rows that are stored as columns), pieces
(codes converted piece by piece), small, bytewise and swizzled (small floats and bytes as several tools store them),
companions (scales that are not of weights), and for a model as a whole: evidence, origins, adapters, lora. native is
quantcli's own layout.
"""
