"""What keeps the memory that runs share with their runner shared: a page is copied by the first who writes it after a fork, and that copy,
together with the fault before it, is most of what a run costs. What one run writes no other ever sees, with this or without.
(For the same reason the slot starts the runner with LD_BIND_NOW: bound late, symbols would be looked up anew in every run.)
"""

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence


def warm(modules: Sequence[str]) -> None:
    """Do once what every run would otherwise do: imports, the compiler's and the traceback's first use. Then forget our own modules."""
    for name in modules:
        __import__(name)
    code = compile("class A:\n    def f(self, *a, **k):\n        return [x for x in a if k] + [f'{a!r:>3}']\nA().f(1)\n", "<warm>", "exec")
    exec(code, {"__name__": "__main__"})
    try:
        exec(compile("[1][2]", "<warm>", "exec"))
    except IndexError:
        traceback.format_exc()
    json.loads(json.dumps({"a": [1.5, "b", None]}))
    for name in [name for name in sys.modules if name.startswith("rljob")]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
    sys.dont_write_bytecode = True


def keep() -> None:
    """From now on neither the collection of garbage nor the counting of references writes to what is there; it stays for ever."""
    gc.collect()
    gc.disable()  # the runs switch it on again, for what they make themselves
    if sys.version_info >= (3, 12) and sys.byteorder == "little":
        _count_no_more()
    gc.freeze()


def _count_no_more() -> None:
    """Give all objects the reference count of those that the interpreter itself keeps for ever (PEP 683), such as None."""
    for_ever = ctypes.c_uint32.from_address(id(None)).value
    known: set[int] = set()
    waiting = gc.get_objects()
    ours = {id(known), id(waiting)}
    while waiting:
        item = waiting.pop()
        if id(item) not in known and id(item) not in ours:
            known.add(id(item))
            waiting.extend(gc.get_referents(item))
    for address in known:
        ctypes.c_uint32.from_address(address).value = for_ever
