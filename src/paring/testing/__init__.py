"""Public helpers for tests of methods: the zoo, small networks, comparisons."""

from paring.testing.nets import Chain, ModuleChain, chain_batch
from paring.testing.same import difference, is_stock, same_state
from paring.testing.zoo import ZOO, Row

__all__ = ["ZOO", "Chain", "ModuleChain", "Row", "chain_batch", "difference", "is_stock", "same_state"]
