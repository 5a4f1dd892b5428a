"""The network: an extractor, a chain of refiners, and the shapes of what they exchange.

May import: nothing.
Start reading: cascade.py.
"""
