"""The text of pages: style and script, no decisions."""
