"""Foreign layouts: what other tools need beside the tensors. One file each."""
