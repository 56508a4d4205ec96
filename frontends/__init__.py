"""What lifts a model into the graph: configs, families, checkpoints."""
