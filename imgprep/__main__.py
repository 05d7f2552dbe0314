"""``python -m imgprep`` is the same as ``imgprep``."""

from imgprep.cli import main

if __name__ == "__main__":
    main(prog_name="imgprep")
