from typing import Final

SHADOW: Final = "orders_rebuild"
"""The schema of a rebuild, unless another is named."""
