"""Everything between messages and media as they are given and the input of a model. Knows no MLX."""
