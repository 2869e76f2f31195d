"""Make the pictures of docs/gallery.md: run its code, save what stands before each image link.

python tools/gallery.py
"""

import io
import re
from pathlib import Path

import matplotlib
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "gallery.md"
LIMIT = 60_000  # bytes


def main() -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    namespace: dict = {}
    for code, picture in re.findall(
        r"```python\n(.*?)```|!\[[^]]*\]\((gallery/\w+\.png)\)", PAGE.read_text(), re.DOTALL
    ):
        if code:
            exec(compile(code, PAGE.name, "exec"), namespace)
            continue
        path = DOCS / picture
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        plt.gcf().savefig(buffer, dpi=100)
        plt.close("all")
        # 256 colours are enough, and no version of matplotlib stands in the file
        Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)
        size = path.stat().st_size
        print(f"{picture}: {size:,} bytes")
        if size > LIMIT:
            raise SystemExit(f"{picture} is larger than {LIMIT:,} bytes")


if __name__ == "__main__":
    main()
