"""Pictures: a scene of a model, laid out, and written as a page, SVG, or for other tools; and charts."""
