"""From a name to opened nodes: which drivers are installed, the graph, the gate, new images."""
