//! [`Report`](crate::Report) → the instruments of an OpenTelemetry meter.
//!
//! The SDK calls back from whichever thread collects; a collection of ours there, and microseconds for
//! each instrument.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};

use super::families::{self, Kind, Unit};
use super::{Value, by_family};
use crate::analyze::collector::Collector;
use crate::record::control;
use crate::record::fork::mutex::ForkMutex;

/// Outlet onto a meter of OpenTelemetry, as instruments that the SDK asks by callbacks.
///
/// Live bytes and blocks are `ObservableUpDownCounter`s, in all and for each site, those with most live
/// bytes first; deltas, times and the peak are `ObservableGauge`s, totals `ObservableCounter`s. They are
/// called `heap.live` (By), `heap.site.live` (By) and so on: translated to Prometheus they have the names
/// of `/metrics`. Values of a site carry `site` and `function`. Values of a scope carry `scope_key` and `scope_value`. `heap.site.info` carries
/// all labels of `heap_site_info` and the conventional `code.function.name`, `code.file.path` and `code.line.number`.
///
/// All instruments of one collection of the SDK show one snapshot, at most 41 sites of it. Totals do not
/// begin again after [`clear_traces`](crate::clear_traces) or [`stop`](crate::stop), because these
/// counters must not fall. If a collection of ours fails, its values are missing once; the panic goes no
/// further.
///
/// Allocations of the callbacks are heapgauge's own, the SDK's attribute sets included; those that the SDK and
/// its exporters make on their own are the program's. Registering takes 3.8 MB, of which the first
/// collection gives 2.5 MB back: the SDK (0.33) makes room for 2,000 attribute sets in every instrument. Use a provider
/// with one reader: the SDK hands the values observed for one reader to the others too, where a site that is gone stays
/// a cycle longer.
///
/// # Examples
///
/// ```
/// let meter = opentelemetry::global::meter("heapgauge"); // of the provider the program has set
/// heapgauge::emit::OpenTelemetry::new(&heapgauge::Collector::new()).register(&meter);
/// ```
#[derive(Clone, Debug)]
#[must_use = "an outlet shows nothing before `register`"]
pub struct OpenTelemetry {
    collector: Collector,
}

impl OpenTelemetry {
    /// Makes an outlet of this collector's reports.
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().top_n(10).build()?;
    /// heapgauge::emit::OpenTelemetry::new(&collector).register(&opentelemetry::global::meter("heapgauge"));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn new(collector: &Collector) -> OpenTelemetry {
        let _own = control::internal();
        OpenTelemetry { collector: collector.clone() }
    }

    /// Registers heapgauge's instruments on `meter`; call it once for each meter provider.
    ///
    /// # Examples
    ///
    /// ```
    /// let meter = heapgauge::opentelemetry::global::meter("heapgauge");
    /// heapgauge::emit::OpenTelemetry::new(&heapgauge::Collector::new()).register(&meter);
    /// ```
    pub fn register(&self, meter: &Meter) {
        let _own = control::internal();
        let source = Arc::new(Source { collector: self.collector.clone(), turns: ForkMutex::default() });
        for (number, family) in families::ALL.iter().enumerate() {
            let source = source.clone();
            // The value of a series has the kind of its family, so the other kinds do not occur.
            macro_rules! register {
                ($builder:ident, $type:ty, $($value:pat => $observed:expr),+) => {
                    {
                        meter
                            .$builder(family.otel)
                            .with_unit(family.unit.ucum())
                            .with_description(family.help)
                            .with_callback(move |instrument: &dyn AsyncInstrument<$type>| {
                                source.observe(number, &mut |value, attributes| match value {
                                    $($value => instrument.observe($observed, attributes),)+
                                    _ => {}
                                });
                            })
                            .build();
                    }
                };
            }
            match (family.kind, family.unit) {
                (Kind::Counter, _) => register!(u64_observable_counter, u64, Value::Count(count) => count),
                (Kind::Sum, _) => {
                    register!(i64_observable_up_down_counter, i64, Value::Level(level) => signed(level));
                }
                (Kind::Gauge, Unit::Seconds) => {
                    register!(f64_observable_gauge, f64, Value::Seconds(seconds) => seconds);
                }
                (Kind::Gauge, _) => register!(
                    i64_observable_gauge, i64,
                    Value::Level(level) => signed(level), Value::Change(change) => change
                ),
            }
        }
    }
}

fn signed(level: u64) -> i64 {
    i64::try_from(level).unwrap_or(i64::MAX)
}

/// Series of one family, with attributes in the SDK's order.
type Observed = Vec<(Vec<KeyValue>, Value)>;

/// Collector behind all instruments of a registration, with the collections of the SDK that are under way.
struct Source {
    collector: Collector,
    turns: ForkMutex<Vec<Turn>>,
}

/// Collection of the SDK. It calls every instrument once, one after the other on one thread, and
/// says neither when it begins nor when it ends; a view may have dropped any of them.
struct Turn {
    thread: ThreadId,
    /// Series by number of the family; taken when its instrument is called. An instrument whose family has
    /// been taken is called for the second time, so a new collection has begun.
    families: Vec<Option<Observed>>,
}

/// Most collections that may be under way at a time, each on a thread of its own.
const MAX_TURNS: usize = 16;

impl Source {
    /// Hands the series of a family to `observe`. A panic would end the SDK's collections for good.
    fn observe(&self, family: usize, observe: &mut dyn FnMut(Value, &[KeyValue])) {
        let _own = control::internal();
        let _ = catch_unwind(AssertUnwindSafe(|| {
            for (attributes, value) in self.take(family) {
                observe(value, &attributes);
            }
        }));
    }

    fn take(&self, family: usize) -> Observed {
        let thread = thread::current().id();
        let mut turns = self.turns.lock();
        let known = turns.iter().position(|turn| turn.thread == thread);
        if let Some(known) = known {
            if let Some(observed) = turns[known].families[family].take() {
                return observed;
            }
            turns.remove(known);
        } else if turns.len() >= MAX_TURNS {
            // Threads that have ended, most likely.
            turns.remove(0);
        }
        let mut turn = Turn { thread, families: self.collect() };
        let observed = turn.families[family].take();
        turns.push(turn);
        observed.unwrap_or_default()
    }

    fn collect(&self) -> Vec<Option<Observed>> {
        let report = self.collector.collect().going_on();
        let mut families: Vec<Option<Observed>> = families::ALL.iter().map(|_| Some(Vec::new())).collect();
        for (family, series) in by_family(&report) {
            let Some(number) = families::ALL.iter().position(|known| *known == family) else { continue };
            let mut sites = report.sites.iter();
            let observed = series.into_iter().map(|(labels, value)| {
                let mut attributes: Vec<KeyValue> =
                    labels.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
                if *family == families::SITE_INFO
                    && let Some(site) = sites.next()
                {
                    attributes.push(KeyValue::new("code.function.name", site.function().to_owned()));
                    attributes.push(KeyValue::new("code.file.path", site.file().to_owned()));
                    attributes.push(KeyValue::new("code.line.number", i64::from(site.line())));
                }
                // The SDK keeps a set in the order it is given and in this one; now they are the same.
                attributes.sort_by(|a, b| a.key.cmp(&b.key));
                (attributes, value)
            });
            families[number] = Some(observed.collect());
        }
        families
    }
}

#[cfg(all(test, feature = "_opentelemetry-sdk"))]
mod tests;
