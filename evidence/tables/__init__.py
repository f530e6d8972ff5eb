"""Tables of papers, one file per paper; `python -m evidence table NAME` makes them."""

from evidence.tables.ablations import ABLATIONS
from evidence.tables.computed import Computed
from evidence.tables.demo_seeds import DEMO
from evidence.tables.figures2018 import FIGURES
from evidence.tables.frankle2020 import FRANKLE
from evidence.tables.friesen2018 import FRIESEN, FRIESEN_SMALL
from evidence.tables.ftprop_toy import TOY
from evidence.tables.he2018 import HE
from evidence.tables.khoram2018 import KHORAM, KHORAM_CIFAR
from evidence.tables.louizos2018 import MNIST, RELAXATIONS
from evidence.tables.savarese2020 import SMALL
from evidence.tables.savarese2020_cifar import SAVARESE
from evidence.tables.savarese2020_equal import EQUAL, TUNING
from evidence.tables.savarese2020_starts import STARTS
from evidence.tables.table import Entry, Table, run_table

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        MNIST,
        RELAXATIONS,
        SMALL,
        STARTS,
        TUNING,
        EQUAL,
        ABLATIONS,
        SAVARESE,
        FRANKLE,
        HE,
        FRIESEN_SMALL,
        FRIESEN,
        KHORAM,
        KHORAM_CIFAR,
    )
}
COMPUTED: dict[str, Computed] = {made.name: made for made in (FIGURES, DEMO, TOY)}

__all__ = ["COMPUTED", "TABLES", "Computed", "Entry", "Table", "run_table"]
