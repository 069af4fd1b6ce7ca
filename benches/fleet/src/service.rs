//! The services of a fleet and the lives of their pods, from a seed. The leaks are known before the first minute.

use crate::random::Random;
use crate::site::{Leak, Lifetime, SiteSpec};

pub const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Sites of a process that are exported.
const SITES: usize = 40;
/// Minutes that a fleet has lived before minute 0.
pub const EARLIER: i64 = 1440;

/// Behaviour of a service's heap. The first six leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Leak,
    /// The release that is rolled out leaks, the one before does not.
    LeakOfRelease,
    /// One function leaks on five lines.
    LeakOnLines,
    LeakInSteps,
    /// Reaches its limit and is restarted, again and again.
    LeakUntilKilled,
    LeakInSome,
    Sawtooth,
    Rollout,
    Evictions,
    /// Loads more data at one minute, and keeps it.
    Jump,
    /// A cache of six hours, rolled out while it is full.
    LongCache,
    Level,
    Autoscaled,
    MappedFile,
}

const KINDS: [Kind; 14] = [
    Kind::Leak,
    Kind::LeakOfRelease,
    Kind::LeakOnLines,
    Kind::LeakInSteps,
    Kind::LeakUntilKilled,
    Kind::LeakInSome,
    Kind::Sawtooth,
    Kind::Rollout,
    Kind::Evictions,
    Kind::Jump,
    Kind::LongCache,
    Kind::Level,
    Kind::Autoscaled,
    Kind::MappedFile,
];

/// A service: its lines of code, its limit, its load.
pub struct Service {
    pub job: String,
    pub kind: Kind,
    pub sites: Vec<SiteSpec>,
    /// Sites that leak, with their leaks.
    pub leaks: Vec<(usize, Leak)>,
    /// First minute of the leak.
    pub leaks_from: i64,
    pub limit: u64,
    /// Bytes outside the tracker.
    pub outside: u64,
    pub jump_at: i64,
    phase: f64,
}

impl Service {
    /// Returns the load of a minute: 1 on average, 30 % more and less over a day.
    pub fn load(&self, minute: i64) -> f64 {
        1.0 + 0.3 * (std::f64::consts::TAU * (minute as f64 / 1440.0 + self.phase)).sin()
    }
}

/// One life of a pod, from `begin` to before `end`.
pub struct Life {
    pub service: usize,
    pub pod: String,
    pub instance: String,
    pub release: &'static str,
    pub begin: i64,
    pub end: i64,
    pub leaks: bool,
    pub stream: u64,
}

pub struct Plan {
    pub services: Vec<Service>,
    pub lives: Vec<Life>,
}

impl Plan {
    /// Plans `services` services of `pods` pods for `minutes` minutes, and the day before.
    pub fn new(seed: u64, services: usize, pods: usize, minutes: i64) -> Plan {
        let mut random = Random::new(seed, 0);
        let mut plan = Plan { services: Vec::new(), lives: Vec::new() };
        for number in 0..services {
            // The leaking services once, the others again and again.
            let kind =
                KINDS[if number < KINDS.len() { number } else { 6 + (number - 6) % (KINDS.len() - 6) }];
            plan.services.push(service(number, kind, &mut random));
            plan.live(number, pods, minutes, &mut random);
        }
        plan
    }

    /// Plans the lives of a service's pods.
    fn live(&mut self, number: usize, pods: usize, minutes: i64, random: &mut Random) {
        let kind = self.services[number].kind;
        let rollout = match kind {
            Kind::LeakOfRelease => Some(random.whole(20, 50)),
            Kind::Rollout | Kind::LongCache => Some(random.whole(150, 180)),
            _ => None,
        };
        for slot in 0..pods {
            let mut begin = -EARLIER;
            let mut ends = Vec::new();
            match kind {
                // One pod after the other, within half an hour. Half of the leaking release stays out.
                Kind::Rollout | Kind::LongCache => {
                    ends.push(rollout.unwrap() + 30 * slot as i64 / pods as i64)
                }
                Kind::LeakOfRelease if slot % 2 == 0 => {
                    ends.push(rollout.unwrap() + 30 * slot as i64 / pods as i64)
                }
                Kind::Evictions => {
                    let mut next = random.whole(-300, 300);
                    while next < minutes {
                        ends.push(next);
                        next += random.whole(60, 600);
                    }
                }
                Kind::Autoscaled if slot % 3 == 0 => begin = random.whole(60, 300),
                _ => {}
            }
            ends.push(i64::MAX);
            for (generation, end) in ends.into_iter().enumerate() {
                let rolled_out = rollout.is_some() && generation > 0;
                let leaks = match kind {
                    Kind::LeakOfRelease => rolled_out,
                    Kind::LeakInSome => slot % 3 == 0,
                    _ => !self.services[number].leaks.is_empty(),
                };
                let stream = self.lives.len() as u64;
                self.lives.push(Life {
                    service: number,
                    pod: format!("{}-{slot}-{generation}", self.services[number].job),
                    instance: format!("10.{number}.{generation}.{slot}:9898"),
                    release: if rolled_out { "2.4" } else { "2.3" },
                    begin,
                    end,
                    leaks,
                    stream,
                });
                begin = end;
            }
        }
    }
}

fn service(number: usize, kind: Kind, random: &mut Random) -> Service {
    let job = format!("service-{number}");
    let heap = random.between(150.0, 400.0) * MIB as f64;
    let mut sites = Vec::with_capacity(SITES);
    // The largest has a fifth of the heap, each one after it 15 % less.
    let mut size = heap * 0.2;
    for index in 0..SITES {
        // Blocks of most lines live for seconds or minutes, those of sessions for an hour.
        let mean = if index % 7 == 3 { random.between(30.0, 90.0) } else { random.between(1.0, 15.0) };
        sites.push(site(number, index, size, Lifetime::Mean(mean), mean));
        size *= 0.85;
    }
    let mut leaks = Vec::new();
    let steady = |bytes: f64| Leak { blocks: bytes / BLOCK as f64, every: 1 };
    let per_minute = heap * random.between(0.002, 0.005);
    let mut limit = 4.0 * heap;
    match kind {
        Kind::Leak | Kind::LeakOfRelease | Kind::LeakInSome => leaks.push((5, steady(per_minute))),
        Kind::LeakOnLines => {
            let function = sites[5].function.clone();
            for (index, site) in sites.iter_mut().enumerate().take(10).skip(5) {
                site.function = function.clone();
                leaks.push((index, steady(per_minute / 3.0)));
            }
        }
        Kind::LeakInSteps => leaks.push((5, Leak { every: 20, ..steady(per_minute) })),
        Kind::LeakUntilKilled => {
            // From the start to the limit in about 40 minutes.
            limit = 2.0 * heap;
            leaks.push((5, steady((limit - heap * 1.15) / 40.0)));
        }
        Kind::Sawtooth => {
            for (index, period) in [(1, random.whole(20, 60)), (4, random.whole(60, 118))] {
                let period = period as usize;
                sites[index] = site(number, index, heap * 0.3, Lifetime::UntilCleared(period), period as f64);
            }
        }
        Kind::LongCache => sites[0] = site(number, 0, heap * 0.5, Lifetime::Fixed(360), 360.0),
        _ => {}
    }
    Service {
        job,
        kind,
        sites,
        leaks,
        leaks_from: random.whole(10, 40),
        limit: limit as u64,
        outside: (heap * 0.15) as u64,
        jump_at: random.whole(100, 260),
        phase: random.between(0.0, 1.0),
    }
}

/// Makes a site that holds about `size` bytes at a load of 1.
fn site(service: usize, index: usize, size: f64, lifetime: Lifetime, minutes: f64) -> SiteSpec {
    SiteSpec {
        id: format!("{:016x}", (service as u64) << 32 | index as u64),
        function: format!("service_{service}::module_{}::Type{index}::method_{index}", index % 6),
        file: format!("service_{service}/src/module_{}.rs", index % 6),
        line: 10 + 7 * index as u32,
        block: BLOCK,
        blocks: size / BLOCK as f64 / minutes,
        lifetime,
    }
}
