"""Laws, checked by hypothesis."""
