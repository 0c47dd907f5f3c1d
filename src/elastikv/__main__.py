"""``python -m elastikv`` is ``elastikv``."""

import sys

from elastikv.cli.main import main

sys.exit(main())
