#!/bin/sh
# First run: from an archive to a report. Usage: sh first-run.sh [ARCHIVE]
set -eu

# 1. An archive.
ARCHIVE=${1:-toy-imagenet.zip}
test $# -gt 0 || test -e "$ARCHIVE" || python3 -c "
from pathlib import Path
from imgprep.testing.toy import write_toy_imagenet
write_toy_imagenet(Path('$ARCHIVE'))"

# 2. Adopt it.
imgprep fetch --from "$ARCHIVE"
cat imgprep-data/raw/source.json

# 3. Choose.
imgprep subset --classes 5 --per-class 30
head -n 3 imgprep-data/subsets/main/manifest.csv

# 4. Pack.
imgprep shard --size 96
tar -tf imgprep-data/shards/main/imgprep-train-000000.tar | head -n 6

# 5. Train.
imgprep train --name first --epochs 4

# 6. Measure and write it up.
imgprep evaluate first
imgprep report first
