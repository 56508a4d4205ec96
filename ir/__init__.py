"""The intermediate representation: types, ops, graphs, their text, cost and meaning."""
