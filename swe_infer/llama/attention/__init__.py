"""Attention over a paged cache. Each module but ``base`` exports a class ``Backend``; its file name is its name."""
