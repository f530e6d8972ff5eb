"""Tables of papers, one file per paper; `paring table NAME` makes them."""

from paring.lab.tables.ablations import ABLATIONS
from paring.lab.tables.computed import Computed
from paring.lab.tables.demo_seeds import DEMO
from paring.lab.tables.figures2018 import FIGURES
from paring.lab.tables.frankle2020 import FRANKLE
from paring.lab.tables.friesen2018 import FRIESEN, FRIESEN_SMALL
from paring.lab.tables.ftprop_toy import TOY
from paring.lab.tables.he2018 import HE
from paring.lab.tables.khoram2018 import KHORAM, KHORAM_CIFAR
from paring.lab.tables.louizos2018 import MNIST, RELAXATIONS
from paring.lab.tables.savarese2020 import SMALL
from paring.lab.tables.savarese2020_cifar import SAVARESE
from paring.lab.tables.savarese2020_starts import STARTS
from paring.lab.tables.table import Entry, Table, run_table

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        MNIST,
        RELAXATIONS,
        SMALL,
        STARTS,
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
