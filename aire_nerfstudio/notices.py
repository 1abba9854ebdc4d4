"""What a person should know of a training that goes on all the same."""

from __future__ import annotations

import sys

from nerfstudio.utils.rich_utils import CONSOLE

from aire_nerfstudio import distributed
from aire_nerfstudio.errors import printable


def warn(message: str) -> None:
    """Say it in one line that begins with ``warning:``, on stderr where nothing else is printed (``--quiet True``).

    Of several processes the first one says it.
    """
    if distributed.rank() > 0:
        return
    line = f"warning: {printable(message)}"
    if CONSOLE.quiet:
        print(line, file=sys.stderr)
    else:
        CONSOLE.log(line, style="yellow", markup=False, highlight=False, _stack_offset=2)
