//! Leak that a report names in one line.
//!
//! Plain values for any thread.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::analyze::symbols::Site;

/// Site that very likely leaks, and the rate of its old blocks.
///
/// # Examples
///
/// ```
/// if let Some(leak) = &heapgauge::Collector::new().collect().leak {
///     // leak: examples/leaky_service.rs:42 Cache::insert +3.1 MiB/min, limit in 2 h 40 min
///     println!("leak: {leak}");
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leak {
    named: Arc<Site>,
    /// Rate at which the bytes of its old blocks grow.
    pub bytes_per_second: f64,
    /// Time until the memory limit is reached, at the present rates of all sites that very likely leak; `None` where there is no limit.
    pub until_limit: Option<Duration>,
}

impl Leak {
    pub(crate) fn new(named: Arc<Site>, bytes_per_second: f64, until_limit: Option<Duration>) -> Leak {
        Leak { named, bytes_per_second, until_limit }
    }

    /// Returns the value of the label `site`, as [`SiteRow::site`](crate::SiteRow::site) does.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// let site = report.leak.as_ref().map(|leak| leak.site());
    /// assert!(site.is_none_or(|site| site.len() == 16));
    /// ```
    pub fn site(&self) -> String {
        self.named.label()
    }

    /// Returns the whole demangled path of the function.
    ///
    /// # Examples
    ///
    /// ```
    /// if let Some(leak) = &heapgauge::Collector::new().collect().leak {
    ///     println!("{}", leak.function());
    /// }
    /// ```
    pub fn function(&self) -> &str {
        &self.named.function
    }

    /// Returns the file, relative to the workspace, registry or library; `<unknown>` without line tables.
    ///
    /// # Examples
    ///
    /// ```
    /// if let Some(leak) = &heapgauge::Collector::new().collect().leak {
    ///     println!("{}", leak.file());
    /// }
    /// ```
    pub fn file(&self) -> &str {
        &self.named.file
    }

    /// Returns the line, 0 when it is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// if let Some(leak) = &heapgauge::Collector::new().collect().leak {
    ///     println!("{}", leak.line());
    /// }
    /// ```
    pub fn line(&self) -> u32 {
        self.named.line
    }
}

/// Writes file, line, the last two parts of the function's path, the rate, and the time until the limit where there is one.
impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leak { named, bytes_per_second, until_limit } = self;
        let (rate, unit) = rate(*bytes_per_second);
        write!(f, "{}:{} {} +{rate} {unit}", named.file, named.line, short(&named.function))?;
        match until_limit {
            Some(left) => write!(f, ", limit in {}", Left(*left)),
            None => Ok(()),
        }
    }
}

/// Returns the last two parts of a path: a type and its method, or a module and its function.
fn short(function: &str) -> &str {
    // Parts inside angle brackets belong to one part of the path.
    let (mut depth, mut parts) = (0_i32, 0);
    let bytes = function.as_bytes();
    for at in (0..bytes.len()).rev() {
        match bytes[at] {
            b'>' if at == 0 || bytes[at - 1] != b'-' => depth += 1,
            b'<' => depth -= 1,
            b':' if depth == 0 && at > 0 && bytes[at - 1] == b':' => {
                parts += 1;
                if parts == 2 {
                    return &function[at + 1..];
                }
            }
            _ => {}
        }
    }
    function
}

/// Returns the rate by the minute, or by the hour where it would be less than a KiB a minute.
fn rate(bytes_per_second: f64) -> (String, &'static str) {
    const KIB: f64 = 1024.0;
    let minute = bytes_per_second * 60.0;
    let hour = minute * 60.0;
    match () {
        () if minute >= KIB * KIB * KIB => (format!("{:.1}", minute / (KIB * KIB * KIB)), "GiB/min"),
        () if minute >= KIB * KIB => (format!("{:.1}", minute / (KIB * KIB)), "MiB/min"),
        () if minute >= KIB => (format!("{:.1}", minute / KIB), "KiB/min"),
        () if hour >= KIB => (format!("{:.1}", hour / KIB), "KiB/h"),
        () => (format!("{hour:.0}"), "bytes/h"),
    }
}

/// Time left, in two units at most.
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0.as_secs() / 60;
        let (days, hours, minutes) = (minutes / 1_440, minutes / 60 % 24, minutes % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{} s", self.0.as_secs()),
            (0, 0, _) => write!(f, "{minutes} min"),
            (0, _, _) => write!(f, "{hours} h {minutes} min"),
            (1..=99, _, _) => write!(f, "{days} d {hours} h"),
            _ => write!(f, "{days} d"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leak(function: &str, bytes_per_second: f64, until_limit: Option<u64>) -> String {
        let site = Site {
            id: 7,
            function: function.into(),
            file: "examples/leaky_service.rs".into(),
            line: 42,
            krate: "leaky_service".into(),
            via: "".into(),
            lost: None,
        };
        Leak::new(Arc::new(site), bytes_per_second, until_limit.map(Duration::from_secs)).to_string()
    }

    #[test]
    fn a_leak_is_one_line() {
        let mib_a_minute = 1_048_576.0 / 60.0;
        assert_eq!(
            leak("leaky_service::Cache::insert", 3.1 * mib_a_minute, Some(9_600)),
            "examples/leaky_service.rs:42 Cache::insert +3.1 MiB/min, limit in 2 h 40 min"
        );
        assert_eq!(leak("main", 1024.0, None), "examples/leaky_service.rs:42 main +60.0 KiB/min");
    }

    #[test]
    fn rates_and_times_have_units_that_fit() {
        assert_eq!(rate(1e9), ("55.9".into(), "GiB/min"));
        assert_eq!(rate(10.0), ("35.2".into(), "KiB/h"));
        assert_eq!(rate(0.1), ("360".into(), "bytes/h"));
        let left = |seconds| Left(Duration::from_secs(seconds)).to_string();
        assert_eq!(
            [left(59), left(60 * 59), left(86_400 + 7_200), left(500 * 86_400)],
            ["59 s", "59 min", "1 d 2 h", "500 d"]
        );
    }

    #[test]
    fn paths_keep_their_last_two_parts() {
        assert_eq!(short("app::cache::Cache::insert"), "Cache::insert");
        assert_eq!(
            short("app::<impl app::Load for app::Cache>::load"),
            "<impl app::Load for app::Cache>::load"
        );
        assert_eq!(short("<app::Cache as app::Load>::load"), "<app::Cache as app::Load>::load");
        assert_eq!(short("app::run::{closure#0}"), "run::{closure#0}");
        assert_eq!(short("run"), "run");
    }
}
