"""The notebook of the first run, in a real kernel."""
