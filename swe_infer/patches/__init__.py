"""Extracts, checks and repairs the patch in a model's answer.

The entry point is :func:`swe_infer.patches.pipeline.make_patch`.
"""
