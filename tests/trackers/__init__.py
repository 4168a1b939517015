"""Trainings that report to real trackers, each read back with what that tracker offers to read it."""
