"""Checks the minutes at which each shipped alert fires for simulated processes, by promtool.

A process is simulated minute by minute (live bytes of its sites, restarts, exported sites) and written as the series that
heapgauge exports. `promtool test rules` evaluates the rules once a minute, and for each minute of a case the
firing alerts, with all their labels, must be exactly those listed here. Every case runs with the labels cluster,
namespace and pod, and without; and of processes that export the age of blocks, and of such that do not. Simulated time: nothing
here waits.

    tests/e2e/rules.py           all cases
    tests/e2e/rules.py saw       the cases with `saw` in their name
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from simulated import (DAY, HOUR, LEAK, LINES_OF_LEAK, MIB, NAMES, OTHER, SMALL, Process, braces, day, evicting, kept, leak, level, plus,
                       ramp, sampled, saw, sessions, steps, wobble)

RULES = pathlib.Path(__file__).resolve().parents[2] / "dashboards" / "rules" / "heapgauge.rules.yml"

GROWING, EXHAUSTS, EXCEEDS = "HeapFunctionGrowing", "HeapFunctionExhaustsMemory", "HeapWillExceedLimit"
OUTSIDE, SATURATED, OFF = "HeapGrowsOutsideTracker", "HeapTrackerSaturated", "HeapTrackerOff"
LINES, KILLED = "HeapLinesLost", "HeapKilledAtLimit"
FLAT = level(60 * MIB)
SEVERITIES = {EXHAUSTS: "critical", EXCEEDS: "critical", OUTSIDE: "info", SATURATED: "warning", OFF: "warning", LINES: "warning",
              KILLED: "info"}
WARNED = (GROWING, "warning")  # where ages are known, it is `info` at first


def one(leak_site, minutes=6 * HOUR, **about):
    """Makes a process with the given site and a constant one."""
    return Process(minutes, {LEAK: leak_site, OTHER: FLAT}, **about)


def again(*starts, **about):
    """Makes a process that starts again at these minutes, and then finds the dumps of a run that was killed."""
    return one(FLAT, starts=(0, *starts), killed=lambda t: t >= starts[0], **about)


# (name, processes, [(alert, first minute, last minute)]); in east, and at the site LEAK if it is about a site.
CASES = [
    ("sawteeth of 7 to 120 minutes",
     [one(saw(period, 200 * MIB), number=period)
      for period in (7, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100, 110, 120)], []),
    ("flat", [one(level(80 * MIB))], []),
    ("steady leak", [one(leak(MIB))], [(GROWING, 130, 360)]),
    ("slow steady leak", [one(leak(MIB // 4, begin=100 * MIB))], [(GROWING, 130, 360)]),
    ("leak below 5 % of the heap", [one(leak(MIB // 5), base=2000)], []),
    ("leak in steps of ten minutes", [one(steps(10 * MIB, 10))], [(GROWING, 130, 360)]),
    ("leak in steps of half an hour", [one(steps(20 * MIB, 30))], [(GROWING, 145, 360)]),
    ("leak in steps of an hour", [one(steps(40 * MIB, 60))], [(GROWING, 145, 360)]),
    ("one jump to a new level", [one(lambda t: (20 if t < 200 else 150) * MIB)], []),
    ("leak that leaves the exported set now and then",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 45 >= 12)], [(GROWING, 132, 360)]),
    ("leak that leaves the exported set for half an hour",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 80 >= 30)], [(GROWING, 140, 360)]),
    ("leak that is exported eight minutes of fourteen",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 14 < 8)], [(GROWING, 130, 360)]),
    ("level site that leaves the exported set for long",
     [one(level(80 * MIB), exported=lambda site, t: site != LEAK or t % 200 >= 100)], []),
    ("sawtooth that leaves the exported set",
     [one(saw(40, 200 * MIB), exported=lambda site, t: site != LEAK or t % 90 >= 40)], []),
    ("leak under a sawtooth", [one(plus(leak(MIB), saw(20, 40 * MIB)))], [(GROWING, 130, 360)]),
    ("warm-up of half an hour, then a plateau", [one(ramp(30, 300 * MIB))], []),
    ("warm-up of an hour, then a plateau", [one(ramp(60, 300 * MIB))], []),
    ("warm-up, then a plateau that wobbles", [one(lambda t: ramp(60, 300 * MIB)(t) + wobble(10 * MIB, 1)(t))], []),
    ("warm-up of twelve minutes to two thirds of the limit", [one(ramp(12, 350 * MIB), limit=1024)], []),
    ("warm-up of half an hour to half of the limit", [one(ramp(30, 190 * MIB), limit=1024)], []),
    ("warm-up in five minutes to the edge of the limit", [one(ramp(5, 600 * MIB), limit=1024)], []),
    ("level that wobbles", [one(wobble(100 * MIB, 0.2))], []),
    ("shrinking", [one(lambda t: 300 * MIB - t * MIB // 2)], []),
    ("site that first appears in the fourth hour",
     [one(lambda t: leak(MIB, at=180, begin=MIB)(t) if t >= 180 else None)],
     [(GROWING, 235, 360)]),
    ("site that appears and stays level", [one(lambda t: 90 * MIB if t >= 180 else None)], []),
    ("scraping begins in the middle of a long life", [one(leak(MIB), seen=180)], [(GROWING, 310, 360)]),
    ("scraping begins, level site", [one(level(80 * MIB), seen=180)], []),
    ("restarts every hour, warm-up each time",
     [one(lambda t: ramp(20, 300 * MIB)(t % 60), starts=tuple(range(0, 361, 60)))], []),
    ("a restart into more memory", [one(lambda t: (50 if t < 200 else 200) * MIB, starts=(0, 200))], []),
    ("a restart into a slow warm-up",
     [one(lambda t: 20 * MIB if t < 200 else ramp(60, 300 * MIB, at=200, begin=30 * MIB)(t), starts=(0, 200))], []),
    ("leak over a restart", [one(lambda t: leak(MIB)(t if t < 240 else t - 240), starts=(0, 240), minutes=8 * HOUR)],
     [(GROWING, 130, 299), (GROWING, 370, 480)]),
    ("killed every 40 minutes",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024)], [(EXHAUSTS, 20, 360)]),
    ("killed every 40 minutes after a quiet day",
     [one(lambda t: 20 * MIB if t < 200 else leak(18 * MIB)((t - 200) % 40), starts=(0, 240, 280, 320, 360), limit=1024)],
     [(EXHAUSTS, 220, 360)]),
    ("fast leak in a large limit", [one(leak(20 * MIB), limit=8192, minutes=390)],
     [(GROWING, 130, 343), (EXHAUSTS, 343, 390)]),
    ("killed every 40 minutes, nothing else in the process",
     [one(lambda t: leak(25 * MIB, begin=0)(t % 40), base=0, unaccounted=level(0), starts=tuple(range(0, 361, 40)),
          limit=1024)],
     [(EXHAUSTS, 28, 360)]),
    # The first filling cannot be told from a leak that will be killed; the later ones can.
    ("sawtooth of 40 minutes under a limit", [one(saw(40, 400 * MIB), limit=1024)], [(EXHAUSTS, 28, 69)]),
    ("sawtooth of 90 minutes under a limit", [one(saw(90, 400 * MIB), limit=1200)], []),
    ("steady leak that wobbles", [one(plus(leak(MIB), wobble(50 * MIB, 0.2)))], [(GROWING, 130, 360)]),
    ("memory outside the tracker creeps to the limit", [one(FLAT, unaccounted=leak(MIB, begin=300 * MIB), limit=1024)],
     [(OUTSIDE, 130, 360), (EXCEEDS, 191, 360)]),
    ("unaccounted memory that wobbles", [one(FLAT, unaccounted=wobble(80 * MIB, 0.3))], []),
    ("unaccounted memory in sawteeth", [one(FLAT, unaccounted=saw(50, 200 * MIB))], []),
    ("unaccounted memory after one jump", [one(FLAT, unaccounted=lambda t: (50 if t < 200 else 250) * MIB)], []),
    # An allocator that is known: each part has an alert of its own.
    ("fragments grow", [one(FLAT, parts={"fragments": leak(MIB)})], [((OUTSIDE, "fragments"), 130, 360)]),
    ("blocks of a C library grow", [one(FLAT, parts={"foreign": leak(MIB)})], [((OUTSIDE, "foreign"), 130, 360)]),
    ("stacks of threads grow", [one(FLAT, parts={"threads": leak(MIB)})], [((OUTSIDE, "threads"), 130, 360)]),
    ("anonymous mappings grow", [one(FLAT, parts={"mappings": leak(MIB)})], [((OUTSIDE, "mappings"), 130, 360)]),
    ("shared memory grows", [one(FLAT, parts={"shared": leak(MIB)})], [((OUTSIDE, "mappings"), 130, 360)]),
    ("another process of the container grows", [one(FLAT, parts={"container": leak(MIB)})],
     [((OUTSIDE, "container"), 130, 360)]),
    ("a C library and fragments grow to the limit",
     [one(FLAT, parts={"foreign": leak(MIB), "fragments": leak(MIB)}, limit=1024)],
     [((OUTSIDE, "foreign"), 130, 360), ((OUTSIDE, "fragments"), 130, 360), (EXCEEDS, 111, 360)]),
    ("a mapped file of which more is read each minute, with the parts of memory",
     [one(FLAT, parts={}, files=leak(5 * MIB), limit=1500)], []),
    ("fragments that come and go", [one(FLAT, parts={"fragments": saw(50, 200 * MIB)})], []),
    ("stacks after one jump", [one(FLAT, parts={"threads": lambda t: (8 if t < 200 else 250) * MIB})], []),
    ("parts that wobble", [one(FLAT, parts={"fragments": wobble(80 * MIB, 0.3), "mappings": wobble(MIB, 1, seed=2)})], []),
    # The blocks were allocated at the start, and are touched one after the other.
    ("large blocks of which more is touched each minute", [one(FLAT, parts={}, untouched=lambda t: max(0, 300 - t) * MIB)], []),
    ("stacks grow where the allocator says nothing",
     [one(FLAT, parts={"threads": leak(MIB)}, allocator=False)], [((OUTSIDE, "threads"), 130, 360)]),
    ("blocks of a C library grow where the allocator says nothing",
     [one(FLAT, parts={"foreign": leak(MIB)}, allocator=False)], [((OUTSIDE, "foreign"), 130, 360)]),
    ("anonymous mappings grow where the allocator says nothing",
     [one(FLAT, parts={"mappings": leak(MIB)}, allocator=False)], [(OUTSIDE, 130, 360)]),
    ("attribution dropped for half an hour", [one(FLAT, dropped=lambda t: 5 * min(max(0, t - 100), 30))],
     [(SATURATED, 117, 159)]),
    ("scopes that find no room for an hour", [one(FLAT, no_scopes=lambda t: 5 * min(max(0, t - 100), 60))], []),
    ("attribution dropped once", [one(FLAT, dropped=lambda t: 500 if t >= 100 else 0)], []),
    # A burst of drops is over within the quarter of an hour that the alert above waits for; what it lost is not.
    ("lines lost in one burst of drops, read after an hour",
     [one(FLAT, dropped=lambda t: 26 if t >= 100 else 0, lost=lambda t: 60 * MIB if 100 <= t < 160 else 0)],
     [(LINES, 115, 174)]),
    ("lines lost of one byte in a thousand", [one(FLAT, lost=lambda t: MIB // 4)], []),
    ("tracking off for an hour", [one(FLAT, tracking=lambda t: 0 if 100 <= t < 160 else 1)], [(OFF, 110, 164)]),
    # Sampled at 512 KiB. 120 MiB more on 20 MiB: 13 errors. 8 MiB more on 300 MiB: less than one.
    ("steady leak in a sampled process", [one(leak(MIB), error=sampled(MIB // 2))], [(GROWING, 130, 360)]),
    ("chance in a sampled process", [one(leak(MIB // 15, begin=300 * MIB), error=sampled(MIB // 2))], []),
    ("the same growth in an exact process", [one(leak(MIB // 15, begin=300 * MIB))], [(GROWING, 130, 360)]),
    ("slow leak in a sampled process, beyond three errors from minute 182 on",
     [one(lambda t: leak(MIB // 15, begin=40 * MIB)(t) + leak(MIB // 2, at=120, begin=0)(t), base=50,
          error=sampled(MIB // 2))],
     [(GROWING, 192, 360)]),
    ("site that first appears in the fourth hour of a sampled process",
     [one(lambda t: leak(MIB, at=180, begin=MIB)(t) if t >= 180 else None, error=sampled(MIB // 2))],
     [(GROWING, 237, 360)]),
    ("killed every 40 minutes, sampled",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024, error=sampled(MIB // 2))],
     [(EXHAUSTS, 20, 360)]),
    # 90 MiB in a window, and three errors of it are 98 MiB or more.
    ("killed every 40 minutes, sampled too seldom to tell",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024, error=sampled(8 * MIB))],
     []),
    ("the same pod address in two clusters",
     [one(leak(MIB)), one(level(80 * MIB), cluster="west")], [(GROWING, 130, 360)]),

    # One leak in many processes is one alert.
    ("leak in twenty processes", [one(leak(MIB), number=number) for number in range(20)], [(GROWING, 130, 360)]),
    ("leak on five lines of one function, none of them above 5 %",
     [Process(6 * HOUR, {**{site: leak(MIB // 6, begin=4 * MIB) for site in LINES_OF_LEAK}, OTHER: FLAT})],
     [(GROWING, 130, 360)]),
    ("ten processes that are killed every 40 minutes, one after the other",
     [one(lambda t, begin=begin: leak(18 * MIB)((t + begin) % 40), starts=(0, *range(40 - begin, 361, 40)), limit=1024,
          number=begin) for begin in range(0, 40, 8)],
     [(EXHAUSTS, 15, 360)]),
    ("leak of one release in three of seven processes, one of them young",
     [one(leak(MIB * (1 if number else 1.5)), number=number, limit=900, minutes=300) for number in range(3)]
     + [one(FLAT, number=number, release="2.3", limit=900, minutes=300) for number in range(3, 6)]
     + [one(leak(MIB, at=240), number=6, starts=(240,), seen=240, limit=900, minutes=300)],
     [(GROWING, 130, 300)]),
    # The growth beside it is as old, and its share of it a few bytes.
    ("leak at the limit beside nine sites that hardly grow",
     [Process(2 * HOUR, {LEAK: leak(4 * MIB, at=60), OTHER: FLAT, **{site: leak(40, begin=8000) for site in SMALL}},
              limit=380, base=200)],
     [(EXHAUSTS, 75, 120)]),
    ("level sites at the limit, some bytes more each minute",
     [Process(6 * HOUR, {OTHER: FLAT, **{site: leak(100, begin=8000) for site in SMALL}}, limit=320)], []),
    ("leak in steps of twenty minutes", [one(steps(20 * MIB, 20))], [(GROWING, 135, 360)]),

    # Load that follows the day, by a third up and down; and what lives for hours under it.
    ("load of a day", [one(day(100 * MIB), load=day(1), minutes=DAY, number=n, base=b) for n, b in enumerate((200, 20))], []),
    ("leak under the load of a day",
     [Process(12 * HOUR, {LEAK: leak(MIB), OTHER: day(100 * MIB)}, load=day(1))], [(GROWING, 130, 720)]),
    ("sessions of two hours under the load of a day",
     [one(kept(day(MIB), 120), load=day(1), minutes=DAY)], []),
    ("the release of a cache that fills for five hours, beside processes that have filled theirs",
     [one(level(300 * MIB), number=number, until=200 + 40 * number, release="2.3") for number in range(4)]
     + [one(ramp(300, 300 * MIB, at=180 + 40 * number), number=10 + number, starts=(180 + 40 * number,),
            seen=180 + 40 * number, minutes=10 * HOUR) for number in range(4)], []),
    ("a mapped file of which more is read each minute, under a limit",
     [one(level(80 * MIB), files=leak(5 * MIB), limit=1500)], []),

    # A restart that tells of a killed run. Pods have numbers of their own: kube-state-metrics knows no jobs.
    ("killed, without kube-state-metrics", [again(200)], [(KILLED, 202, 257)]),
    ("killed in twenty pods", [again(200 + number, number=number) for number in range(20)], [(KILLED, 202, 276)]),
    ("killed every 40 minutes, with dumps", [again(*range(40, 361, 40))], [(KILLED, 42, 360)]),
    # Scraped in one minute of six, between the pauses that Kubernetes makes.
    ("killed within a minute each time",
     [one(FLAT, starts=(0, *range(200, 361, 6)), killed=lambda t: t >= 200 and t % 6 == 2)], [(KILLED, 212, 360)]),
]

# As above, for pods of which kube-state-metrics knows.
ENDED = [
    ("killed for memory", [again(200, number=1000, ended=lambda t: "OOMKilled" if t >= 200 else None)], [(KILLED, 202, 257)]),
    ("ended by itself", [again(200, number=1001, ended=lambda t: "Completed" if t >= 200 else None)], []),
    ("ended by a signal, which kube-state-metrics tells a minute late",
     [again(200, number=1002, ended=lambda t: "Error" if t >= 202 else None)], []),
    ("ended by a signal, days after a kill for memory, told a minute late",
     [again(200, number=1003, ended=lambda t: "Error" if t >= 202 else "OOMKilled")], []),
    ("killed for memory in the second pod",
     [again(200, number=1004, ended=lambda t: "Error" if t >= 200 else None),
      again(230, number=1005, ended=lambda t: "OOMKilled" if t >= 230 else None)], [(KILLED, 232, 287)]),
]

# (name, processes, alerts as above, minutes in which no rule is evaluated)
UNEVALUATED = [
    ("rules loaded onto sawteeth of 20 to 120 minutes",
     [one(saw(period, 200 * MIB), number=period) for period in (20, 35, 50, 70, 90, 110, 120)], [], (0, 200)),
    ("rules loaded onto sawteeth under a limit", [one(saw(period, 400 * MIB), limit=1024, number=period)
                                                  for period in (40, 90)], [], (0, 200)),
    ("rules loaded onto a leak", [one(leak(MIB), minutes=8 * HOUR)], [(GROWING, 330, 480)], (0, 200)),
    ("rules loaded onto processes that are killed every 40 minutes",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024)], [(EXHAUSTS, 220, 360)], (0, 200)),
    # It follows the load three hours late, by an eighth in two hours, and the rules know the load of two hours only.
    ("rules loaded onto a cache of six hours under the load of a day",
     [one(kept(day(MIB // 2), 360), load=day(1), base=20,
          minutes=16 * HOUR)], [], (0, 700)),
    ("no evaluation for an hour, sawteeth",
     [one(saw(period, 200 * MIB), number=period, minutes=8 * HOUR) for period in (20, 35, 50, 70, 90, 110, 120)], [],
     (200, 260)),
    ("no evaluation for an hour, jump to a new level",
     [one(lambda t: (20 if t < 230 else 150) * MIB, minutes=8 * HOUR)], [], (200, 260)),
    # The processes before the release were never judged by their growth, but were seen two hours apart.
    ("no evaluation for an hour and a half, then the release of sessions under rising load",
     [one(sessions(day(60 * MIB), 90, at=-DAY), load=day(1), until=180 + 10 * number, number=number, release="2.3")
      for number in range(3)]
     + [one(sessions(day(60 * MIB), 90, at=at), load=day(1), starts=(at,), seen=at, number=at, minutes=8 * HOUR)
        for at in (180, 190, 200)], [], (60, 150)),
    ("no evaluation for an hour and a half, then the release of a cache that fills for five hours",
     [one(level(300 * MIB), until=180 + 10 * number, number=number, release="2.3") for number in range(3)]
     + [one(ramp(300, 300 * MIB, at=at), starts=(at,), seen=at, number=at, minutes=8 * HOUR) for at in (180, 190, 200)],
     [], (60, 150)),
    ("no evaluation for an hour and a half, then the release of a leak",
     [one(level(80 * MIB), until=180 + 10 * number, number=number, release="2.3") for number in range(3)]
     + [one(leak(MIB, at=at), starts=(at,), seen=at, number=at, minutes=8 * HOUR) for at in (180, 190, 200)],
     [(GROWING, 310, 480)], (60, 150)),
]


# Alerts of processes with ages, where they differ from those above.
OTHERWISE = {
    # Of a leak in steps of an hour the second one has to be old. A line that is new in an old process is named within two hours.
    "leak in steps of ten minutes": [(GROWING, 141, 360)],
    "leak in steps of twenty minutes": [(GROWING, 130, 360)],
    "leak in steps of an hour": [(GROWING, 205, 360)],
    "site that first appears in the fourth hour": [(GROWING, 286, 360)],
    "site that first appears in the fourth hour of a sampled process": [(GROWING, 304, 360)],
    "leak that leaves the exported set now and then": [(GROWING, 142, 360)],
    "leak that leaves the exported set for half an hour": [(GROWING, 145, 360)],
    "leak that is exported eight minutes of fourteen": [(GROWING, 131, 360)],
    "steady leak in a sampled process": [(GROWING, 136, 360)],
    "slow leak in a sampled process, beyond three errors from minute 182 on": [(GROWING, 262, 360)],
    "the same growth in an exact process": [(GROWING, 196, 360)],
    "fast leak in a large limit": [(GROWING, 130, 272), (WARNED, 273, 343), (EXHAUSTS, 343, 390)],
    "leak of one release in three of seven processes, one of them young": [(GROWING, 130, 257), (WARNED, 258, 300)],
    "leak under the load of a day": [(GROWING, 130, 489), (WARNED, 490, 720)],
    # Its old bytes have to be a tenth above the level that the function kept.
    "no evaluation for an hour and a half, then the release of a leak": [(GROWING, 352, 480)],
}

# As above, for processes with ages alone.
AGES = [
    # A hundred processes that follow the load of a day, each at an hour of its own: requests, sessions, and caches with a time to live.
    ("load of a day in a hundred processes",
     [Process(10 * HOUR, {LEAK: day(100 * MIB, ahead=15 * number), OTHER: FLAT,
                    SMALL[0]: sessions(day(60 * MIB, ahead=15 * number), 45), SMALL[1]: kept(day(MIB // 3, ahead=15 * number), 180)},
              load=day(1, ahead=15 * number), number=number, base=60) for number in range(100)], []),
    ("cache that takes six hours to fill", [one(ramp(360, 300 * MIB), minutes=14 * HOUR, limit=1024)], [(GROWING, 130, 404)]),
    ("cache that takes six hours to fill, in a process of a day",
     [one(ramp(360, 300 * MIB, at=300), minutes=16 * HOUR, limit=1024)], [(GROWING, 418, 704)]),
    ("cache that takes six hours to fill and then evicts the oldest",
     [one(evicting(360, 300 * MIB), minutes=14 * HOUR, limit=1024)], [(GROWING, 130, 398)]),
    ("leak of 1 % of the heap an hour", [one(leak(4 * MIB / 60, begin=0), base=340)], [(GROWING, 144, 360)]),
    ("leak of 1 % of the heap an hour that begins in the fourth hour",
     [one(leak(4 * MIB / 60, begin=0, at=180), base=340, minutes=8 * HOUR)], [(GROWING, 324, 480)]),
    ("leak of 1 % of the heap an hour on a line that turns over 100 MiB, under falling load",
     [one(plus(leak(5 * MIB / 60, begin=0), day(100 * MIB, ahead=DAY // 2)), load=day(1, ahead=DAY // 2), base=340)], [(GROWING, 144, 360)]),
    ("leak that reaches the limit within the hour, in a process of four hours",
     [one(leak(12 * MIB, at=240), limit=1024, until=293)], [(EXHAUSTS, 265, 323)]),
    ("leak of twelve hours", [one(leak(MIB // 2), minutes=12 * HOUR)], [(GROWING, 130, 489), (WARNED, 490, 720)]),
    ("tables of the start, which become old all at once", [one(ramp(10, 250 * MIB))], []),
    # Half an hour of the young bytes follows the old ones for as long.
    ("leak that stops", [one(ramp(300, 300 * MIB), minutes=10 * HOUR)], [(GROWING, 130, 344)]),
    ("leak where old are the bytes of six hours", [one(leak(MIB), old_age=6 * HOUR)], [(WARNED, 130, 360)]),
    ("leak in two processes, one of them without ages", [one(leak(MIB)), one(leak(MIB), number=1, ages=False)], [(WARNED, 130, 360)]),
]

GROUPS = re.findall(r"^  - name: (\w+)$", RULES.read_text(), re.M)


def labels_of(alert, job, process, kubernetes, ages):
    """Returns the expected labels of an alert."""
    target = {**process.target, "job": job}
    where = {name: target[name] for name in (("cluster", "namespace", "job") if kubernetes else ("job",))}
    name, value = alert if isinstance(alert, tuple) else (alert, None)
    where["severity"] = (value or ("info" if ages else "warning")) if name == GROWING else SEVERITIES[name]
    if name in (GROWING, EXHAUSTS, KILLED):
        where["function"] = NAMES[LEAK]["function"]
    if name == OUTSIDE and value:
        where["part"] = value
    return {**where, **({"reason": "stacks"} if name == SATURATED else {})}


def name_of(alert):
    """Returns the name of an alert; one that is split by a label is listed as (name, value)."""
    return alert[0] if isinstance(alert, tuple) else alert


def case(job, processes, fires, kubernetes, ages):
    """Makes the series of a case, a job of its own, and the expected alerts of every minute."""
    def firing(t):
        now = {alert for alert, first, last in fires if first <= t <= last}
        return [{"labels": braces({"alertname": name_of(alert), **labels_of(alert, job, processes[0], kubernetes, ages)}), "value": 1}
                for alert in now]

    # Every label, so that one too many is seen, such as that of a process.
    query = f'count without (__name__, alertstate) (ALERTS{{alertstate="firing",job="{job}"}})'
    return [series for process in processes for series in process.series(kubernetes, job, ages)], [
        {"expr": query, "eval_time": f"{t}m", "exp_samples": firing(t)} for t in range(processes[0].minutes + 1)]


# alert -> (a case in which it fires, minute, severity, summary, description)
SENTENCES = {
    GROWING: (
        "leak of one release in three of seven processes, one of them young", 290, "warning",
        "Heap leak: shop::Cache::insert in cart (processes: 3)",
        "shop::Cache::insert grows in 3 of 6 processes of cart that can be judged; by release: 0 of 3 of 2.3, 3 of 3 of 2.4."
        " It gains 3.5MiB a minute in all, since about 00:00 UTC; the first process reaches its limit in 1h 27m 20s. Most at"
        " src/cache.rs:42 in cart-0: kubectl -n shop port-forward cart-0 9899"),
    EXHAUSTS: (
        "killed every 40 minutes", 30, "critical",
        "Out of memory within the hour: shop::Cache::insert in cart (processes: 1)",
        "shop::Cache::insert takes what is left of the memory limit within the hour in 1 of 1 processes of cart that can be"
        " judged; by release: 1 of 1 of 2.4. It gains 18MiB a minute in all; the first process reaches its limit in 8m 20s."
        " Most at src/cache.rs:42 in cart-0: kubectl -n shop port-forward cart-0 9899"),
    EXCEEDS: (
        "memory outside the tracker creeps to the limit", 240, "critical",
        "cart will exceed its memory limit within four hours (processes: 1)",
        "The memory of 1 of 1 processes of cart that counts against their limit has grown for two hours. In four hours cart-0"
        " would have 1.078GiB, which is above its limit."),
    OUTSIDE: (
        "memory outside the tracker creeps to the limit", 240, "info",
        "cart grows outside the tracked heap (processes: 1)",
        "Memory that is neither live blocks nor heapgauge's own nor pages of files grows in 1 of 1 processes of cart, by 1MiB a"
        " minute in all: fragmentation, a C library, mmap or thread stacks."),
    (OUTSIDE, "fragments"): (
        "fragments grow", 240, "info",
        "cart grows outside the tracked heap: free memory of the allocator (processes: 1)",
        "Memory that the allocator holds and that is in no block (free lists, fragments, rounding) grows in 1 of 1 processes of"
        " cart, by 1MiB a minute in all. POST /debug/heap/trim tells fragmentation from a leak."),
    (OUTSIDE, "foreign"): (
        "blocks of a C library grow", 240, "info",
        "cart grows outside the tracked heap: C libraries (processes: 1)",
        "Memory in blocks that did not come through heapgauge (C and C++ libraries that call malloc) grows in 1 of 1 processes of"
        " cart, by 1MiB a minute in all. No line of Rust allocates it; bound the caches of the libraries."),
    (OUTSIDE, "threads"): (
        "stacks of threads grow", 240, "info",
        "cart grows outside the tracked heap: stacks of threads (processes: 1)",
        "The touched part of the stacks of threads grows in 1 of 1 processes of cart, by 1MiB a minute in all; the largest"
        " process has 260 threads. Bound the thread pools."),
    (OUTSIDE, "mappings"): (
        "anonymous mappings grow", 240, "info",
        "cart grows outside the tracked heap: mappings (processes: 1)",
        "Memory that the program or a library maps itself (mmap, memfd, shared memory) grows in 1 of 1 processes of cart, by 1MiB"
        " a minute in all. /proc/PID/smaps names the mappings."),
    (OUTSIDE, "container"): (
        "another process of the container grows", 240, "info",
        "cart grows outside the tracked heap: beside this process (processes: 1)",
        "Memory that counts against the limit and is not of this process (other processes, tmpfs, the kernel) grows in 1 of 1"
        " processes of cart, by 1MiB a minute in all. Look at the other processes of its container, and at its tmpfs."),
    SATURATED: (
        "attribution dropped for half an hour", 120, "warning",
        "heapgauge drops attribution in cart (reason: stacks, processes: 1)",
        "75 allocations in the last quarter of an hour could not be given to a site in cart (processes: 1); reason: stacks."
        " Totals stay right, the sites show too little."),
    LINES: (
        "lines lost in one burst of drops, read after an hour", 120, "warning",
        "heapgauge has no memory for the lines of cart (processes: 1)",
        "The lines of code that hold 60MiB in the worst process of cart were not read for want of memory (processes: 1)."
        " Totals stay right, those sites are missing or go by function."),
    OFF: (
        "tracking off for an hour", 120, "warning",
        "heapgauge is off in cart (processes: 1)",
        "Tracking is stopped or paused in cart (processes: 1): there are no sites, and none of the other heap alerts can name"
        " a line."),
    KILLED: (
        "killed in twenty pods", 222, "info",
        "Killed at the memory limit: shop::Cache::insert in cart (processes: 20)",
        "20 processes of cart were killed, and shop::Cache::insert holds most in their last dumps. The latest began again at"
        " 03:39 UTC; its dumps are at /debug/heap/dumps in cart-19: kubectl -n shop port-forward cart-19 9899"),
}


# As above, of processes with ages.
WORDS_WITH_AGES = {
    GROWING: (
        "leak of one release in three of seven processes, one of them young", 290, "warning",
        "Heap leak: shop::Cache::insert in cart (processes: 3)",
        "shop::Cache::insert grows in 3 of 6 processes of cart that can be judged; by release: 0 of 3 of 2.3, 3 of 3 of 2.4."
        " It gains 3.5MiB a minute in all, since about 23:58 UTC; the first process reaches its limit in 1h 27m 19s. Most at"
        " src/cache.rs:42 in cart-0: kubectl -n shop port-forward cart-0 9899"),
}


def plain(description):
    """Returns the description of an alert whose targets have neither pod nor namespace."""
    description = re.sub(r" in cart-(\d+): kubectl.*", lambda pod: f" in 10.0.0.{int(pod[1]) + 7}:9898", description)
    return description.replace(" cart-0 ", " 10.0.0.7:9898 ")


def sentence(alert, kubernetes, ages):
    """Makes one test of promtool: the whole alert, word by word."""
    name, minute, severity, summary, description = (WORDS_WITH_AGES if ages else SENTENCES)[alert]
    processes, = (processes for other, processes, _ in CASES if other == name)
    return {
        "interval": "1m",
        "input_series": [series for process in processes for series in process.series(kubernetes, "cart", ages)],
        "alert_rule_test": [{
            "eval_time": f"{minute}m", "alertname": name_of(alert),
            "exp_alerts": [{
                "exp_labels": {**labels_of(alert, "cart", processes[0], kubernetes, ages), "severity": severity},
                "exp_annotations": {
                    "summary": summary, "description": description if kubernetes else plain(description),
                    "runbook_url": f"https://runbooks.example.com/heapgauge/{name_of(alert)}.md"}}]}],
    }


def promtool(test, rules=RULES):
    """Runs promtool on one test. Returns its complaint, empty if the test passes."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-rules-") as directory:
        path = pathlib.Path(directory, "test.yml")  # JSON is YAML
        path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "group_eval_order": GROUPS,
                                    "tests": [test]}))
        done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=900)
    said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line.strip())
    return said if done.returncode else ""


def unevaluated(begin, end):
    """Returns the rules in a file: each expression is empty from minute `begin` to minute `end`."""
    outside = f"(vector(time()) < {60 * begin} or vector(time()) >= {60 * end})"

    def gated(match):
        indent, text = match[1], match[2]
        lines = text.strip().splitlines() if "\n" not in text else text.split("\n")
        body = "\n".join(f"{indent}  {line}" for line in lines if line.strip() and line.strip() != "|")
        return f"{indent}expr: |\n{indent}  (\n{body}\n{indent}  ) and on () {outside}\n"

    text, count = re.subn(r"^( +)expr: (\|\n(?:\1 +.*\n)+|.*\n)", gated, RULES.read_text(), flags=re.M)
    assert count == len(re.findall(r"- (?:record|alert): ", text)), count
    file = tempfile.NamedTemporaryFile("w", prefix="heapgauge-rules-", suffix=".yml")
    file.write(text)
    file.flush()
    return file


def all_cases(cases, kubernetes, ages, rules=RULES):
    """Tries all cases in one run of promtool, each as a job of its own. Returns the complaints by case."""
    jobs = {f"cart{number}": name for number, (name, _, _) in enumerate(cases)}
    test = {"interval": "1m", "input_series": [], "promql_expr_test": []}
    for job, (_, processes, fires) in zip(jobs, cases):
        series, queries = case(job, processes, fires, kubernetes, ages)
        test["input_series"] += series
        test["promql_expr_test"] += queries
    said = promtool(test, rules)
    problems = {name: "" for name in jobs.values()}
    for complaint in re.split(r"^ *expr: ", said, flags=re.M)[1:]:
        job = re.search(r'job=\\"(\w+)\\"', complaint)[1]
        problems[jobs[job]] += re.sub(r".*time: (\S+),\n", r"\1\n", complaint)
    assert not said or any(problems.values()), said
    return problems


def sums_of_scopes():
    """Returns the test of the recorded sums by scope: over the processes of a job, by key and value."""
    def series(cluster, job, pod, key, value, number):
        labels = {"cluster": cluster, "namespace": "shop", "pod": pod, "job": job, "instance": f"{pod}:9898",
                  "scope_key": key, "scope_value": value}
        return {"series": "heap_scope_live_bytes" + braces(labels), "values": f"{number}x10"}

    held = [("east", "cart", "cart-0", "tenant", "acme", 90), ("east", "cart", "cart-1", "tenant", "acme", 9),
            ("east", "cart", "cart-1", "tenant", "[other]", 5), ("east", "cart", "cart-1", "route", "/search", 14),
            ("west", "cart", "cart-0", "tenant", "acme", 7), ("east", "mail", "mail-0", "tenant", "acme", 3)]
    sums = {}
    for cluster, job, _, key, value, number in held:
        sums[cluster, job, key, value] = sums.get((cluster, job, key, value), 0) + number
    names = ("cluster", "job", "scope_key", "scope_value")
    labels = lambda row: braces({**dict(zip(names, row)), "namespace": "shop"})
    return {"interval": "1m", "input_series": [series(*row) for row in held], "promql_expr_test": [
        {"expr": "job_scope:heap_scope_live_bytes:sum", "eval_time": "6m", "exp_samples": [
            {"labels": "job_scope:heap_scope_live_bytes:sum" + labels(row), "value": value} for row, value in sums.items()]}]}


def check_rules():
    """`promtool check rules` accepts the file."""
    done = subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES],
                          capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


def main(words):
    def chosen(name):
        return all(word in name for word in words)

    with contextlib.ExitStack() as files, ThreadPoolExecutor(os.cpu_count()) as pool:
        problems, waiting = {"promtool check rules": check_rules()}, {}
        for kubernetes, ages in ((True, True), (True, False), (False, True), (False, False)):
            plain = ("" if kubernetes else ", plain labels") + ("" if ages else ", no ages")
            # Without the labels that tell them apart, two processes at one address would be one.
            cases = [case for case in CASES + (AGES if ages else []) + (ENDED if kubernetes else []) if chosen(case[0])
                     and (kubernetes or len({process.target["cluster"] for process in case[1]}) == 1)]
            if ages:
                cases = [(name, processes, OTHERWISE.get(name, fires)) for name, processes, fires in cases]
            # The long ones by themselves: a run is as long as its longest case.
            for number, part in enumerate(([case for case in cases if case[1][0].minutes <= 8 * HOUR],
                                           [case for case in cases if case[1][0].minutes > 8 * HOUR])):
                if part:
                    waiting[plain + " " * number] = pool.submit(all_cases, part, kubernetes, ages)
            for outage in sorted({outage for *_, outage in UNEVALUATED}) if kubernetes else []:
                cases = [(name, processes, OTHERWISE.get(name, fires) if ages else fires)
                         for name, processes, fires, when in UNEVALUATED if when == outage and chosen(name)]
                if cases:
                    rules = files.enter_context(unevaluated(*outage))
                    waiting[f", minutes {outage[0]} to {outage[1]}{plain}"] = pool.submit(all_cases, cases, kubernetes, ages, rules.name)
            for alert in WORDS_WITH_AGES if ages else SENTENCES:
                title = f"the words of {alert if isinstance(alert, str) else ', '.join(alert)}"
                if chosen(title):
                    waiting[title + plain] = pool.submit(promtool, sentence(alert, kubernetes, ages))
        if chosen("sums of scopes"):
            waiting["sums of scopes"] = pool.submit(promtool, sums_of_scopes())
        for name, result in waiting.items():
            found = result.result()
            problems |= {case + name: problem for case, problem in found.items()} if isinstance(found, dict) else {name: found}
    for name, problem in problems.items():
        print(f"FAILED  {name}\n{problem[:3000]}" if problem else f"ok  {name}")
    failed = sum(problem != "" for problem in problems.values())
    print(f"{len(problems) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
