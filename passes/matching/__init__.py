"""What passes look for in a graph, and how they change it."""
