//! One process: its sites minute by minute, and the series that heapgauge would export.

use std::collections::VecDeque;

use crate::random::Random;
use crate::service::{EARLIER, Kind, Life, MIB, Service};
use crate::site::Site;

/// Minutes of the baseline.
const WINDOW: usize = 5;
/// Minutes from which on a block is old.
const OLD_AGE: usize = 60;
/// Minutes between the marks of so long ago: a block is seen to be old so much later.
const PRECISION: usize = 6;

pub struct Process<'a> {
    pub service: &'a Service,
    pub life: &'a Life,
    random: Random,
    /// Next minute to be lived.
    minute: i64,
    /// First minute since the last start; a process that is killed starts again.
    started: i64,
    sites: Vec<Site>,
    /// Blocks of each site in the latest minutes, the present one first.
    history: VecDeque<Vec<u64>>,
    allocated: [u64; 2],
    deallocated: [u64; 2],
    peak: u64,
    jumped: u64,
    pub kills: u32,
}

/// Receives a series: name, labels in braces or nothing, and value.
pub type Emit<'e> = &'e mut dyn FnMut(&str, &str, f64);

impl<'a> Process<'a> {
    pub fn new(seed: u64, service: &'a Service, life: &'a Life) -> Process<'a> {
        let mut process = Process {
            service,
            life,
            random: Random::new(seed, 1 + life.stream),
            minute: life.begin,
            started: life.begin,
            sites: Vec::new(),
            history: VecDeque::new(),
            allocated: [0; 2],
            deallocated: [0; 2],
            peak: 0,
            jumped: 0,
            kills: 0,
        };
        // Processes of the day before did not all start at the same minute.
        if life.begin == -EARLIER {
            process.started -= process.random.whole(0, 600);
        }
        process.start();
        process
    }

    fn start(&mut self) {
        self.sites = self.service.sites.iter().map(Site::new).collect();
        self.history.clear();
        (self.allocated, self.deallocated, self.peak, self.jumped) = ([0; 2], [0; 2], 0, 0);
    }

    /// Lives until the end of `minute`.
    pub fn advance(&mut self, minute: i64) {
        while self.minute <= minute {
            self.step();
            self.minute += 1;
        }
    }

    fn step(&mut self) {
        let service = self.service;
        if self.usage() >= service.limit {
            self.kills += 1;
            self.started = self.minute;
            self.start();
        }
        let load = service.load(self.minute);
        let age = (self.minute - self.started + 1).max(1) as usize;
        let leaks = self.life.leaks && self.minute >= service.leaks_from;
        for (index, (site, spec)) in self.sites.iter_mut().zip(&service.sites).enumerate() {
            let leak = service.leaks.iter().find(|(at, _)| leaks && *at == index).map(|(_, leak)| leak);
            let (born, died) = site.step(spec, leak, age, load, &mut self.random);
            for (total, blocks) in [(&mut self.allocated, born), (&mut self.deallocated, died)] {
                total[0] += blocks * spec.block;
                total[1] += blocks;
            }
        }
        if service.kind == Kind::Jump && self.minute >= service.jump_at && self.jumped == 0 {
            self.jumped = 60 * MIB / service.sites[2].block;
            self.sites[2].load(self.jumped);
        }
        self.history.push_front(self.sites.iter().map(Site::blocks).collect());
        self.history.truncate(WINDOW + 1);
        self.peak = self.peak.max(self.live());
    }

    fn live(&self) -> u64 {
        self.sites.iter().zip(&self.service.sites).map(|(site, spec)| site.blocks() * spec.block).sum()
    }

    fn usage(&self) -> u64 {
        self.live() + self.service.outside + 4 * MIB
    }

    /// Emits every series of this minute. `seconds` turns a minute into a Unix time, `minute_length` is a minute in seconds.
    pub fn series(&self, seconds: &dyn Fn(i64) -> f64, minute_length: f64, emit: Emit) {
        let live = self.live() as f64;
        let blocks = self.sites.iter().map(Site::blocks).sum::<u64>() as f64;
        let window = self.history.len() - 1;
        emit("heap_tracking", "", 1.0);
        emit("heap_start_timestamp_seconds", "", seconds(self.started));
        emit("heap_live_bytes", "", live);
        emit("heap_live_blocks", "", blocks);
        emit("heap_peak_bytes", "", self.peak as f64);
        emit("heap_allocated_bytes_total", "", self.allocated[0] as f64);
        emit("heap_allocations_total", "", self.allocated[1] as f64);
        emit("heap_deallocated_bytes_total", "", self.deallocated[0] as f64);
        emit("heap_deallocations_total", "", self.deallocated[1] as f64);
        for ((site, spec), then) in self.sites.iter().zip(&self.service.sites).zip(&self.history[window]) {
            if site.blocks() == 0 {
                continue;
            }
            let names = format!("{{site=\"{}\",function=\"{}\"}}", spec.id, spec.function);
            let block = spec.block as f64;
            let delta = site.blocks() as f64 - *then as f64;
            emit("heap_site_live_bytes", &names, site.blocks() as f64 * block);
            emit("heap_site_live_blocks", &names, site.blocks() as f64);
            emit("heap_site_live_delta_bytes", &names, delta * block);
            emit("heap_site_live_delta_blocks", &names, delta);
            let old = site.blocks_older_than(OLD_AGE + (self.minute - self.started) as usize % PRECISION);
            emit("heap_site_old_bytes", &names, old as f64 * block);
            emit("heap_site_allocated_bytes_total", &names, site.allocated as f64 * block);
            let (function, file, line) = (&spec.function, &spec.file, spec.line);
            let labels = format!(
                "{{site=\"{}\",function=\"{function}\",file=\"{file}\",line=\"{line}\",crate=\"service\",via=\"\"}}",
                spec.id
            );
            emit("heap_site_info", &labels, 1.0);
        }
        emit("heap_sites", "", 600.0);
        emit("heap_sites_exported", "", self.sites.len() as f64);
        emit("heap_old_age_seconds", "", OLD_AGE as f64 * minute_length);
        emit("heap_delta_window_seconds", "", window as f64 * minute_length);
        emit("heap_snapshot_timestamp_seconds", "", seconds(self.minute - 1));
        emit("heap_snapshot_duration_seconds", "", 0.001);
        emit("heap_untracked_bytes", "", 0.0);
        emit("heap_overhead_bytes", "", (4 * MIB) as f64);
        emit("heap_unnamed_bytes", "{state=\"pending\"}", 0.0);
        emit("heap_unnamed_bytes", "{state=\"lost\"}", 0.0);
        for reason in ["stacks", "memory", "threads", "series", "reentrant"] {
            emit("heap_dropped_events_total", &format!("{{reason=\"{reason}\"}}"), 0.0);
        }
        emit("heap_truncated_stacks_total", "", 0.0);
        emit("heap_fallback_walks_total", "", 0.0);
        let mapped = match self.service.kind {
            Kind::MappedFile => (5 * MIB) as f64 * (self.minute - self.started) as f64,
            _ => 0.0,
        };
        emit("heap_resident_bytes", "", self.usage() as f64 + mapped);
        emit("heap_memory_limit_bytes", "", self.service.limit as f64);
        emit("heap_memory_limit_usage_bytes", "", self.usage() as f64);
        emit("heap_sample_interval_bytes", "", 0.0);
        let build = format!(
            "{{version=\"0.1.0\",build_id=\"{:016x}\",release=\"{}\",site_scheme=\"2\",capture=\"cfi\",symbols=\"lines\"}}",
            self.life.service, self.life.release
        );
        emit("heap_build_info", &build, 1.0);
    }
}
