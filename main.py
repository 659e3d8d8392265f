"""The command line: composes the config, runs the task that `mode` names."""

import sys

if __name__ == "__main__":
    # only here: processes that a run starts import this file first, and have no use for what the command line needs
    from flm.tasks.command_line import main

    sys.exit(main())
