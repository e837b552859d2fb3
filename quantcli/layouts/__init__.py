"""Layouts: how each tool stores a weight. One module or package per tool.

Each begins with a picture of the bytes, and offers READS (a reader.Reader: which tensors are weights in this layout,
and how they are decoded), WRITES (a writer.Writer: which schemes it can store, and how a model is converted), or both.
Reading and writing share facts such as the order of bits, but no code, so that a round trip does not test itself. A new
layout is a file: `registry` finds it by its name, which is the name that --to takes.

Shared modules: reader and writer (what a layout offers), accepts (the schemes that a target stores), config and loaders
(the configuration of a model, and what the tools can load), groups (what compressed-tensors' configuration says),
stored (parts of a stored weight as float32), transposed (rows that are stored as columns), pieces and whole_bytes
(codes converted piece by piece), small and bytewise (small floats and bytes as several tools store them), held,
held_floats and as_nvfp4 (codes of one layout for another), companions (scales that are not of weights), and for a model
as a whole: evidence, origins, adapters, lora. native is quantcli's own layout.
"""
