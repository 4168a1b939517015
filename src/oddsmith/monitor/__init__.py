"""A page that shows runs while they go on and afterwards. It reads run folders and writes nothing into them."""
