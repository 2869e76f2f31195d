"""Train, validate and test detectors: `python examples/detect.py fit --config examples/configs/detection/digits.yaml`.

Everything that examples/train.py can do, for data with boxes. See docs/tasks.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import train

try:
    from recipes.data.detection import DetectionData
    from recipes.detection.module import Detection
except ImportError as error:
    sys.exit(f'{error}\nThe recipes need more packages: pip install ".[examples]"')


def main(arguments=None):
    train.main(arguments, Detection, DetectionData)


if __name__ == "__main__":
    main()
