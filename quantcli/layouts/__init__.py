"""What the bytes of each tool mean: one module, or one package, for the layout of a tool.

Each begins with a picture of the bytes, and offers READS (a reader.Reader: which tensors are weights in this layout,
and how they are decoded), WRITES (a writer.Writer: which schemes it can store, and what becomes of a model), or both.
Reading and writing share facts such as the order of bits, but no code, so that a round trip does not test itself. A new
layout is a file: `registry` finds it by its name, which is the name that --to takes.

Beside them stand what they share: reader and writer (what a layout offers), config and loaders (what is said of a model
beside its tensors, and what the tools take), stored (parts of a stored weight as float32) and pieces (codes on their
way), and what is known of a model as a whole: evidence, origins, adapters. native is quantcli's own layout.
"""
