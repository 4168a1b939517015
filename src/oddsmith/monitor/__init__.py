"""Show runs on a page in the browser, while they train and afterwards. Run folders are read, never written."""
