"""The text of what is emitted: code, no decisions."""
