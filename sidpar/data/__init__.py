"""Images in memory: datasets as uint8 tensors, vectorised augmentation, and batches that depend on the seed alone."""
