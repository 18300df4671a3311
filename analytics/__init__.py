"""Explains: typed frames in, typed frames and decisions out; the edges read, write and act."""
