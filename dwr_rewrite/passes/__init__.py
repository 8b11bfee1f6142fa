"""One front end per kind of graph. Siblings never import each other."""
