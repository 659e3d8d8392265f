"""The command line: composes the config, runs the task that `mode` names."""

import sys

from flm.tasks.command_line import main

if __name__ == "__main__":
    sys.exit(main())
