"""Makers of what lies in the repository; a package, because installed ones have a folder of this name as well."""
