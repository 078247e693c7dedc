"""Vectors that are nearest to vectors, and how good a ranking is.

exact.py        every document looked at, block by block
compact.py      vectors in fewer bytes
blocks.py       what an index is built from, read in blocks
index.py        most documents not looked at: cells of faiss, kept as plain arrays
ranking.py      MRR, recall and nDCG from ranks
collection.py   what is searched and what should be found: BEIR folders
division.py     a BEIR folder as training data: queries divided, negatives by mining.py
"""

from distilflax.search import index
from distilflax.search.exact import nearest

__all__ = ["index", "nearest"]
