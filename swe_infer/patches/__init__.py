"""Extracts, checks and repairs the patch in a model's answer.

The entry point is :func:`swe_infer.patches.pipeline.make_patch`.
"""

VERSION = 6
"""The version of the extractor. Raise it when the result for some answer may change. Records state it."""
