"""From a model's answer to a patch that applies: extract, check, repair.

The one entry point of the room is :func:`swe_infer.patches.pipeline.make_patch`.
"""
