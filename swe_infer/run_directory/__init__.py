"""The files of a run directory.

``layout`` names the files. ``store.RunStore`` writes a run directory, ``reader.RunDirectory`` reads one. ``records``
defines the records, ``figures`` the summary with its counts and rates.
"""
