"""Networks that are known by name, whole: to be cut, or to be an extractor.

May import: config.groups.
Start reading: base.py, what one says of itself; resnet.py.
"""
