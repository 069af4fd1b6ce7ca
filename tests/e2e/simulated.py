"""A process, minute by minute, as the series that heapgauge and kube-state-metrics export of it, for promtool."""

import functools
import math
import random

MIB = 1 << 20
HOUR, DAY = 60, 1440
DELTA_WINDOW = 5  # minutes
OLD_AGE = 60  # minutes
LEAK, OTHER = "00000000000000aa", "00000000000000bb"
LINES_OF_LEAK = [LEAK] + [f"00000000000000a{number}" for number in range(4)]  # five lines of one function
SMALL = [f"00000000000000c{number}" for number in range(9)]
NAMES = {
    **{site: {"function": "shop::Cache::insert", "file": "src/cache.rs", "line": str(42 + number)}
       for number, site in enumerate(LINES_OF_LEAK)},
    OTHER: {"function": "shop::parse", "file": "src/parse.rs", "line": "7"},
    **{site: {"function": f"shop::small{number}", "file": "src/small.rs", "line": "9"} for number, site in enumerate(SMALL)},
}

PARTS = {name: lambda t, size=size: size * MIB for name, size in
         {"fragments": 30, "foreign": 10, "threads": 8, "mappings": 1, "shared": 2, "container": 5, "rounding": 3}.items()}


class Process:
    """Describes one scraped process. `sites`: bytes of each at a minute, `None` before it exists. `seen`: first scrape, `until`: last.

    `load`: how much it allocates. `files`: resident pages of files, which count against no limit. `parts`: of an allocator that
    is known, the parts of its memory (`PARTS`) that are not constant, instead of `unaccounted`; `allocator=False`: one that
    says nothing. `no_scopes`: scopes that found no room. `untouched`: live bytes whose pages are not resident. `killed`: whether it tells of
    an earlier run that was killed. `ages`: whether it exports old bytes, those in blocks older than `old_age` minutes. `ended`: the reason that kube-state-metrics has for the last end of a
    container of its pod, `None` where it knows of none.
    """

    def __init__(self, minutes, sites, *, base=200, limit=None, unaccounted=lambda t: 50 * MIB, starts=(0,), seen=0,
                 until=1 << 20, tracking=lambda t: 1, dropped=lambda t: 0, no_scopes=lambda t: 0, exported=lambda site, t: True, lost=lambda t: 0,
                 cluster="east", number=0, release="2.4", load=lambda t: 1, files=lambda t: 0, parts=None, allocator=True,
                 untouched=lambda t: 0, error=None, ages=True, old_age=OLD_AGE, killed=lambda t: False, ended=lambda t: None):
        self.target = {"cluster": cluster, "namespace": "shop", "pod": f"cart-{number}", "job": "cart",
                       "instance": f"10.0.0.{number + 7}:9898"}
        self.minutes, self.sites, self.base, self.limit = minutes, sites, base * MIB, limit
        self.allocator, self.untouched = allocator, untouched
        self.parts = None if parts is None else {**PARTS, **parts}
        self.unaccounted = unaccounted if parts is None else lambda t: sum(part(t) for part in self.parts.values())
        self.starts, self.seen, self.until, self.tracking = starts, seen, until, tracking
        self.dropped, self.exported, self.lost, self.release = {"stacks": dropped, "scopes": no_scopes}, exported, lost, release
        self.load, self.files, self.killed, self.ended = load, files, killed, ended
        self.ages, self.old_age = ages, old_age
        self.error = error  # standard error of a site of a sampled process

    def series(self, kubernetes, job, ages):
        """Returns the exported series for promtool, with or without the labels of Kubernetes, and those of ages."""
        target = {**self.target, "job": job}
        if not kubernetes:
            target = {name: target[name] for name in ("job", "instance")}

        def line(name, value, **labels):
            text, there = [], False
            for t in range(self.minutes + 1):
                v = value(t) if self.seen <= t <= self.until else None
                # Prometheus writes a staleness marker when a series is missing from a scrape.
                text.append(repr(v) if v is not None else "stale" if there else "_")
                there = v is not None
            return {"series": name + braces({**target, **labels}), "values": " ".join(text)}

        ages = ages and self.ages

        def start(t):
            return max(s for s in self.starts if s <= t)

        def baseline(t):
            return max(start(t), t - DELTA_WINDOW)

        def held(site, t):
            return int(self.sites[site](t) or 0)

        @functools.cache
        def old(site, t):
            # Marks of the past are a tenth of the age apart: a block is old up to so much later.
            return min(held(site, t), int(old_bytes(self.sites[site], t, start(t), self.old_age + t % (self.old_age // 10))))

        def live(t):
            return self.base + sum(held(site, t) for site in self.sites)

        def counted(t):
            return live(t) - self.untouched(t) + 4 * MIB + self.unaccounted(t)

        allocated, peaks = [0], [live(0)]
        for t in range(1, self.minutes + 1):
            young = t in self.starts
            allocated.append(0 if young else allocated[-1] + int(6000 * MIB * self.load(t)))
            peaks.append(live(t) if young else max(peaks[-1], live(t)))

        yield line("heap_start_timestamp_seconds", lambda t: 60 * start(t))
        if any(map(self.killed, range(self.minutes + 1))):
            yield line("heap_previous_run_info", lambda t: 1 if self.killed(t) else None, reason="limit", site=LEAK,
                       function=NAMES[LEAK]["function"])
        for reason in sorted({self.ended(t) for t in range(self.minutes + 1)} - {None}) if kubernetes else ():
            yield line("kube_pod_container_status_last_terminated_reason", lambda t: 1 if self.ended(t) == reason else None,
                       job="kube-state-metrics", instance="10.0.1.1:8080", container="cart", reason=reason)
        yield line("heap_tracking", self.tracking)
        yield line("heap_live_bytes", live)
        yield line("heap_peak_bytes", lambda t: peaks[t])
        yield line("heap_allocated_bytes_total", lambda t: allocated[t])
        if ages:
            yield line("heap_old_age_seconds", lambda t: 60 * self.old_age)
        yield line("heap_untracked_bytes", lambda t: 0)
        yield line("heap_overhead_bytes", lambda t: 4 * MIB)
        yield line("heap_unnamed_bytes", self.lost, state="lost")
        yield line("heap_unnamed_bytes", lambda t: 90 * MIB if t < 3 else 0, state="pending")
        yield line("heap_resident_bytes", lambda t: counted(t) + self.files(t))
        yield line("heap_memory_limit_usage_bytes", counted)
        if self.parts and self.allocator:
            yield line("heap_allocator_free_resident_bytes", self.parts["fragments"])
            yield line("heap_allocator_internal_fragmentation_bytes", lambda t: 3 * MIB)
            yield line("heap_unaccounted_bytes", self.parts["mappings"])
            yield line("heap_live_untouched_bytes", self.untouched)
        if self.parts:
            yield line("heap_foreign_bytes", self.parts["foreign"])
            yield line("heap_thread_stack_bytes", self.parts["threads"])
            yield line("heap_process_threads", lambda t: self.parts["threads"](t) // MIB)
            yield line("heap_resident_shared_bytes", self.parts["shared"])
            yield line("heap_resident_file_bytes", self.files)
            yield line("heap_resident_anonymous_bytes",
                       lambda t: counted(t) - self.parts["shared"](t) - self.parts["container"](t))
        yield line("heap_build_info", lambda t: 1, version="0.1.0", build_id="77aa", release=self.release)
        yield line("heap_delta_window_seconds", lambda t: 60 * (t - baseline(t)))
        for reason in ("stacks", "memory", "threads", "series", "reentrant", "scopes"):
            yield line("heap_dropped_events_total", self.dropped.get(reason, lambda t: 0), reason=reason)
        if self.limit:
            yield line("heap_memory_limit_bytes", lambda t: self.limit * MIB)
        for site in self.sites:
            def exported(value):
                there = lambda t: self.sites[site](t) is not None and self.exported(site, t) and self.tracking(t)
                return lambda t: value(t) if there(t) else None
            name = {"site": site, "function": NAMES[site]["function"]}
            yield line("heap_site_live_bytes", exported(lambda t: held(site, t)), **name)
            yield line("heap_site_live_delta_bytes", exported(lambda t: held(site, t) - held(site, baseline(t))), **name)
            if ages:
                yield line("heap_site_old_bytes", exported(functools.partial(old, site)), **name)
            yield line("heap_site_info", exported(lambda t: 1), site=site, crate="shop", **NAMES[site])
            if self.error:
                yield line("heap_site_live_stderr_bytes", exported(lambda t: self.error(held(site, t))), **name)


def braces(labels):
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def old_bytes(shape, t, start, age):
    """Returns the bytes of a shape at a minute in blocks older than `age`, in a process that started at `start`.

    A shape that knows its lifetimes has a function `old`. Of others the youngest blocks are freed first: old are as many bytes as were
    live all the time since.
    """
    if hasattr(shape, "parts"):
        return sum(old_bytes(part, t, start, age) for part in shape.parts)
    if t - age < start:
        return 0
    if hasattr(shape, "old"):
        return shape.old(t, age)
    return min(shape(minute) or 0 for minute in range(t - age, t + 1))


def lives(shape, old):
    """Gives a shape its lifetimes: `old` returns the bytes at a minute in blocks older than an age."""
    shape.old = old
    return shape


def leak(per_minute, at=0, begin=20 * MIB):
    """Starts at `begin` bytes, and grows every minute from minute `at` on."""
    return lambda t: begin + int(per_minute * max(0, t - at))


def steps(size, every, begin=20 * MIB):
    return lambda t: begin + size * (t // every)


def saw(period, height, begin=20 * MIB):
    """Fills a cache for `period` minutes, then empties it."""
    return lambda t: begin + height * (t % period) // period


def level(value):
    return lambda t: value


def ramp(until, top, at=0, begin=0):
    """Fills from minute `at` for `until` minutes, then stays."""
    return lambda t: begin + (top - begin) * min(max(0, t - at), until) // until


def sessions(value, mean, at=0):
    """Memory of requests or users that stay for `mean` minutes on average: fills ever more slowly from minute `at` on."""
    def stay(minutes):
        return math.exp(-max(0, minutes) / mean)
    return lives(lambda t: int(value(t) * (1 - stay(t - at))), lambda t, age: max(0, value(t - age) * (stay(age) - stay(t - at))))


def kept(arrives, minutes):
    """Each minute's bytes are kept for `minutes`, by a cache with a time to live; `arrives` says how many come, before minute 0 as well."""
    return lives(functools.cache(lambda t: sum(arrives(t - ago) for ago in range(minutes))),
                 lambda t, age: sum(arrives(t - ago) for ago in range(age, minutes)))


def evicting(until, top, at=0):
    """A cache that fills from minute `at` for `until` minutes, and then evicts the oldest for each new block."""
    return lives(ramp(until, top, at=at),
                 lambda t, age: min(max(0, t - age - at) * top // until, max(0, top - age * top // until)))


def wobble(value, share, seed=1):
    """Varies around `value` by `share`; the same numbers in every run."""
    dice = random.Random(seed)
    factors = [1 + share * (2 * dice.random() - 1) for _ in range(1000)]
    return lambda t: int(value * factors[t])


def day(value, ahead=0):
    """Follows the load of a day: a third less and more, lowest at the beginning, `ahead` minutes earlier. Its blocks live for minutes."""
    return lives(lambda t: value * (1 - 0.3 * math.cos(2 * math.pi * (t + ahead) / DAY)), lambda t, age: 0)


def sampled(interval):
    """Returns the standard error of a site of small blocks, one of which is sampled every `interval` bytes."""
    return lambda held: round((held * interval) ** 0.5)


def plus(*parts):
    def whole(t):
        return sum(part(t) for part in parts)
    whole.parts = parts
    return whole
