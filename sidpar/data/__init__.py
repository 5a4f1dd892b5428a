"""Datasets in memory or in files, vectorised augmentation, and batches that depend on the seed alone."""
