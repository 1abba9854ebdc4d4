"""The run-time type checker of the tests."""

import random

# It looks at one item of a list, drawn from the random numbers that everybody has: let it have its own.
_everybodys = random.getrandbits
random.getrandbits = random.Random(0).getrandbits
from beartype import BeartypeConf, beartype  # noqa: E402

random.getrandbits = _everybodys

# An int is a float, as it is for every caller.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
