"""Images as grids of tiles."""

import math

import numpy as np


def best_grid(height: int, width: int, tile: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) for an image: of all grids of min_tiles to max_tiles squares of `tile` pixels a side the one with
    the aspect nearest to the image's; of equally near ones the largest that has less than twice the image's pixels.
    Source: transformers' GotOcr2ImageProcessor, Lfm2VlImageProcessor."""
    sides = range(1, max_tiles + 1)
    grids = [(rows, columns) for columns in sides for rows in sides if min_tiles <= rows * columns <= max_tiles]
    best, nearest = (1, 1), math.inf
    for rows, columns in sorted(grids, key=math.prod):
        distance = abs(width / height - columns / rows)
        large_enough = height * width > 0.5 * tile**2 * rows * columns
        if distance < nearest or (distance == nearest and large_enough):
            best, nearest = (rows, columns), distance
    return best


def smallest_upscaling(height: int, width: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) for an image: of all grids of at most max_tiles squares of `tile` pixels a side the one that
    holds the image with the least enlargement; where none does, the one that shrinks it least. Of equal ones the
    smallest.
    Source: transformers' Cohere2VisionImageProcessor."""
    sides = range(1, max_tiles + 1)
    grids = sorted(((r, c) for c in sides for r in sides if r * c <= max_tiles), key=math.prod)
    scales = {grid: min(grid[0] * tile / height, grid[1] * tile / width) for grid in grids}
    enlarging = [grid for grid in grids if scales[grid] >= 1]
    return min(enlarging, key=scales.__getitem__) if enlarging else max(grids, key=scales.__getitem__)


def cut_tiles(pixels: np.ndarray, tile: int) -> np.ndarray:
    """pixels: (rows * tile, columns * tile, C) -> (rows * columns, tile, tile, C), in reading order."""
    rows, columns = pixels.shape[0] // tile, pixels.shape[1] // tile
    tiles = pixels.reshape(rows, tile, columns, tile, -1).swapaxes(1, 2)
    return tiles.reshape(rows * columns, tile, tile, -1)
