"""All architectures of the census, by name."""

from __future__ import annotations

from evidence.benches.wild import Wild
from evidence.benches.wild_images import ATTENTION, CONVOLUTIONS, SENSES
from evidence.benches.wild_rest import REST
from evidence.benches.wild_text import TEXT

SUBJECTS: dict[str, Wild] = {**TEXT, **SENSES, **REST, **ATTENTION, **CONVOLUTIONS}
