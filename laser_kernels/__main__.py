import sys

from laser_kernels.cli import main

sys.exit(main())
