"""The benchmark of the picture kernel runs and says what it measured, on a few drawn pictures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).with_name("kernels.py")


def test_every_kernel_is_timed_and_compared(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (94, 125 + number, 3), np.uint8))
            buffer = io.BytesIO()
            noise.resize((500 + 4 * number, 376), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
            archive.writestr(f"{number}.jpg", buffer.getvalue())
    command = [sys.executable, str(SCRIPT), str(tmp_path / "photos.zip"), "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    about, *lines = (json.loads(line) for line in done.stdout.splitlines())

    assert (about["pictures"], about["above_256"], about["median"]) == (3, 3, [504, 376])
    assert {line["part"] for line in lines} == {"resize", "scaled", "chain", "chain without colour profiles", "header"}
    close = {line["name"]: line["psnr"][0] for line in lines if line["part"] == "resize" and "psnr" in line}
    assert close["imgprep: Lanczos low-pass, INTER_CUBIC"] > close["cv2 INTER_AREA"] + 3
