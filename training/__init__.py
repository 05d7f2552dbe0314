"""Training on shards: reads what `imgprep shard` wrote, writes runs."""
