"""Selects which of several answers to an instance is submitted.

Tests that decide whether an answer is resolved are never used.
"""
