"""What runs inside a slot. Standard library only: it is imported before the slot closes, and every run is forked from it."""
