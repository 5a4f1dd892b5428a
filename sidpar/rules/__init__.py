"""What refiners learn from, and the paper's propositions about it.

May import: config.
Start reading: kl.py.
"""
