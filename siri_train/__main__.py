"""``python -m siri_train`` is ``siri-train``."""

import sys

from siri_train.cli import main

sys.exit(main())
