"""Run chat templates, which are untrusted programs, in a sandbox with limits on work, time and size."""
