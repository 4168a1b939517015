"""Judges of answers: each gives every answer to a prompt a score, and a reason where it cannot."""
