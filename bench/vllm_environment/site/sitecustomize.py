"""Read by Python at the start of every process of the test engine: sleep where vLLM would spin.

vLLM's processes wait for each other in loops around `sched_yield`. On a machine with fewer cores than it has
processes, that holds up everything else for seconds, the tests' own timers included. A sleep of no length gives the
core away in earnest, and the engine is as fast.
"""

import os
import time


def _give_way() -> None:
    time.sleep(0)


os.sched_yield = _give_way
