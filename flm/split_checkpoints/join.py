"""`flm join FOLDER FILE`: a checkpoint whose parts lie in a folder becomes the file it would have been in one piece."""

from collections.abc import Sequence
from pathlib import Path

from flm.checkpoints import files
from flm.split_checkpoints.split_folder import SplitFolder, whole_content
from flm.text_commands import Arguments


def join(arguments: Sequence[str]) -> int:
    """make one file of a checkpoint that several processes wrote

    Any strategy goes on from the file. It takes as much main memory as the file will be large.
    """
    parser = Arguments(prog="flm join", description=join.__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint written under strategy=fsdp2_split, RUN/checkpoints/last.ckpt")
    parser.add_argument("file", type=Path, help="the file to write")
    given = parser.parse_args(arguments)
    if not SplitFolder.matches(given.folder):
        raise ValueError(f"{given.folder}: not a checkpoint whose parts lie in a folder")
    if given.file.is_dir():
        raise ValueError(f"{given.file}: a folder: name a file")
    files.save(whole_content(given.folder), given.file)
    print(f"{given.file}: {given.file.stat().st_size / 1e6:,.1f} MB", flush=True)
    return 0
