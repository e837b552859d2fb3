"""One tensor's arithmetic, without files: rows that share parameters, fitting, codes, packing, digests."""
