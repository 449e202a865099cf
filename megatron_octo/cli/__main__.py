"""`python -m megatron_octo.cli`."""

import sys

from megatron_octo.cli import main

sys.exit(main())
