"""imgprep prepares image datasets: fetch, catalog, annotations, subset, shard, and feed them to a trainer.

Import a stage from its own module, e.g. ``from imgprep.shard import shard``. This package file imports nothing, so
that ``imgprep --help`` stays quick.
"""

__version__ = "0.1.0"
