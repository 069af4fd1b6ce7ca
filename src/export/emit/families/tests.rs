//! Names of families follow the conventions of each outlet.

use super::*;

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for (position, family) in ALL.iter().enumerate() {
        let (name, is_counter) = (family.name, family.kind == Counter);
        assert!(name.starts_with("heap_"), "{name}");
        assert_eq!(name.ends_with("_total"), is_counter, "{name}");
        let base = name.trim_end_matches("_total");
        assert_eq!(base.ends_with("_bytes"), family.unit == Bytes, "{name}");
        assert_eq!(base.ends_with("_seconds"), family.unit == Seconds, "{name}");
        assert!(family.help.ends_with('.') && !family.help.contains(['\\', '\n']), "{name}");
        assert!(ALL[..position].iter().all(|earlier| earlier.name != name), "{name} twice");
    }
}

/// Translates a name by <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>
/// as far as names like ours need it: a character that is not a letter or a figure becomes an underscore, a unit
/// that is none is dropped, a unit that the name lacks is added, and so is the ending of a counter.
#[cfg(feature = "opentelemetry")]
fn translated(family: &Family) -> String {
    let mut name = family.otel.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let unit = match family.unit.ucum() {
        "By" => "bytes",
        "s" => "seconds",
        "1" if family.kind == Gauge => "ratio",
        _ => "",
    };
    if !unit.is_empty() && !name.split('_').any(|word| word == unit) {
        name = format!("{name}_{unit}");
    }
    if family.kind == Counter && !name.ends_with("_total") {
        name.push_str("_total");
    }
    name
}

#[test]
#[cfg(feature = "opentelemetry")]
fn names_of_opentelemetry_translate_to_those_of_prometheus() {
    for family in ALL {
        assert_eq!(translated(family), family.name);
        assert!(family.otel.starts_with("heap."), "{}", family.otel);
    }
}
