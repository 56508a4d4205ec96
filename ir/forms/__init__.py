"""Forms of bodies: what a kernel op's body must look like, read by the passes that make it and by code generation."""
