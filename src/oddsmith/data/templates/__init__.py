"""Chat templates are programs by strangers: here they run in a sandbox with limits on work, time and size."""
