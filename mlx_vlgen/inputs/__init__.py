"""Everything between messages, images and videos as they are given and the input of a model. Knows no MLX."""
