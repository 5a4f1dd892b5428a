"""What a trained cascade does.

May import: cascade, data.
Start reading: samples.py.
"""
