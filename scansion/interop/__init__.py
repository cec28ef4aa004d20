"""SAEs of other libraries: read from their files, without the libraries, and written for SAELens.

Every reader turns a file or folder into a :class:`ForeignSAE`, which holds our settings and our weights. What our SAEs cannot
compute in the same way is refused by name.
"""

from scansion.interop.foreign import read_foreign
from scansion.interop.hub import from_pretrained, push_to_hub
from scansion.interop.saelens import write_saelens
from scansion.interop.weights import ForeignSAE

__all__ = ["ForeignSAE", "from_pretrained", "push_to_hub", "read_foreign", "write_saelens"]
