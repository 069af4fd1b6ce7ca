//! Applies the settings of the environment that are the whole process's, and reads those of sites.
#![forbid(unsafe_code)]

use super::env::Config;
use crate::analyze::collector::budget::set_max_overhead;
use crate::analyze::collector::{Collector, CollectorBuilder};
use crate::analyze::symbols::{self, SiteFrame, SiteSettings, signed};
use crate::base::error::Error;
use crate::record::control;

/// Applies frames, sampling, tracking, the memory limit and the rules of sites.
pub(super) fn apply(config: &Config) -> Result<(), Error> {
    if let Some(frames) = config.frames {
        control::set_traceback_limit(frames)?;
    }
    if let Some(bytes) = config.sample {
        control::set_sample_interval(bytes)?;
    }
    if config.on == Some(true) && control::has_allocator() {
        control::start(control::traceback_limit())?;
    }
    if let Some(reclaims) = config.reclaim {
        control::set_reclaims(reclaims);
    }
    config.max_overhead.map(set_max_overhead).transpose()?;
    symbols::global().set_site_rules(&config.sites);
    Ok(())
}

/// Returns the settings that are those of a collector.
pub(super) fn collector(config: &Config) -> CollectorBuilder {
    let mut builder = Collector::builder().top_n(config.top_n).delta_window(config.delta_window);
    if let Some(bytes) = config.dumps.memory_limit {
        builder = builder.memory_limit(bytes);
    }
    if let Some(age) = config.old_age {
        builder = builder.old_age(age);
    }
    if let Some(cohorts) = config.cohorts {
        builder = builder.cohorts(cohorts);
    }
    builder.release(config.release.as_str())
}

/// Reads one of the variables about sites. Err: the line about its value, without its name.
pub(super) fn rule_of_sites(rules: &mut SiteSettings, key: &str, value: &str) -> Result<(), String> {
    match key {
        "HEAPGAUGE_SITE" => {
            rules.frame = Some(match value {
                "own" => SiteFrame::Own,
                "nearest" => SiteFrame::Nearest,
                _ => return Err("allowed are own and nearest, taking own".into()),
            });
        }
        "HEAPGAUGE_OWN_CRATES" => {
            rules.own_crates = Some(names(value).ok_or(
                "allowed are crates and modules with + or - before them, such as +tasks,-common::cache, taking the \
                 workspace's crates",
            )?);
        }
        // HEAPGAUGE_LOOK_THROUGH
        _ => {
            rules.look_through = Some(names(value).ok_or(
                "allowed are crates with + or - before them, such as +arena,-bytes, taking the published list",
            )?);
        }
    }
    Ok(())
}

/// Reads `+a,-b`. Nothing between the commas is none.
fn names(value: &str) -> Option<Vec<String>> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| signed(name).map(|_| name.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_sites_that_is_none_names_what_is_allowed() {
        for (key, value, line) in [
            ("HEAPGAUGE_SITE", "mine", "HEAPGAUGE_SITE=mine: allowed are own and nearest, taking own"),
            (
                "HEAPGAUGE_OWN_CRATES",
                "+tasks,shop",
                "HEAPGAUGE_OWN_CRATES=+tasks,shop: allowed are crates and modules with + or - before them, such as \
                 +tasks,-common::cache, taking the workspace's crates",
            ),
            (
                "HEAPGAUGE_LOOK_THROUGH",
                "bytes",
                "HEAPGAUGE_LOOK_THROUGH=bytes: allowed are crates with + or - before them, such as +arena,-bytes, \
                 taking the published list",
            ),
        ] {
            let mut rules = SiteSettings::default();
            let problem = rule_of_sites(&mut rules, key, value).unwrap_err();
            assert_eq!(
                (format!("{key}={value}: {problem}"), rules),
                (line.to_owned(), SiteSettings::default())
            );
        }
    }
}
