"""Further turns of a conversation: the group ``feedback``.

The first turn is the same answer as without feedback, so this group is not part of a run's identity.
"""
