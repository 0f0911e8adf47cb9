"""Object stores: paths such as ``s3://bucket/run``.

The rest of the package works on local paths. Commands translate a URL at their boundary: :mod:`.paths` gives a local
path for reading, and :mod:`.mirror` a local working directory that is uploaded while it changes.
"""
