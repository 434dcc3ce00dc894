"""A run's model on arrays, and over whole scenes: maps, polygons, areas."""
