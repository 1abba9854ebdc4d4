"""See :func:`emulated_cuda.main`."""

import sys

from emulated_cuda import main

sys.exit(main(sys.argv[1:]))
