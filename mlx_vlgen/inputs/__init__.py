"""Everything between what a person has (messages, pictures, video) and what a model takes. Knows no MLX."""
