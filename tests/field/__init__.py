"""Scripts in the pattern of public ORPO scripts, each written by us, with imports of ours in place of TRL's."""
