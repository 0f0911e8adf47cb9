"""The files of a run directory: their names, their one writer and their one reader.

``layout`` names the files. ``store.RunStore`` writes a run; ``reader.RunDirectory`` reads one, whoever made it.
``records`` is the form of a record, ``figures`` that of the summary and of every count and rate in it.
"""
