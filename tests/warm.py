"""What the server that ranks are forked from does once, so that no rank has to: import pytest, which files of tests
do, read the description of every setting, and load the dataset of most tests."""

import gc

import pytest  # noqa: F401

from sidpar.data.datasets import load
from sidpar.train import parse

parse([])
load("digits")
gc.freeze()  # or the first collection in each rank would visit, and so copy, all that the imports have made
