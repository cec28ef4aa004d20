"""The runtime type checker that tests run the library under: beartype, with ints accepted where floats are."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
