"""Datasets in memory or in files, augmentation and batches.

May import: nothing.
Start reading: loader.py.
"""
