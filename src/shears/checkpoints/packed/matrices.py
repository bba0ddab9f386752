"""Which tensors of a model's files a package may pack, by name and shape. Pure."""

import re

from torch import Tensor

IN_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight$")
ROUTERS = {"router", "shared_expert_gate"}  # modules that choose experts; so does one whose last name is `gate`


def is_block_matrix(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor may be packed: a plain matrix of a decoder block that is no router."""
    match = IN_BLOCK.search(name)
    plain = tensor.ndim == 2 and tensor.is_floating_point() and tensor.element_size() <= 4 and tensor.numel() > 0
    if match is None or not plain:
        return False
    path = match["path"].split(".")
    return path[-1] != "gate" and ROUTERS.isdisjoint(path)


def same_name(linear: str, module: str) -> bool:
    """Return whether a linear of the files is that module; files may leave out the first part of a name."""
    return module == linear or module.endswith(f".{linear}")
