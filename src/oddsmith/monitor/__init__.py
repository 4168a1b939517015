"""Show runs on a page in the browser, while they go on and afterwards. Run folders are read, never written."""
