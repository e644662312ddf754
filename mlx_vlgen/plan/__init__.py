"""`mlx-vlgen plan`: what a model needs on machines that are not there, computed from its configuration."""
