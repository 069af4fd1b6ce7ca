//! Exposition text in any order → the same text in the fixed order.
//!
//! Pure; linear apart from sorting each family's lines.
#![forbid(unsafe_code)]

use super::families;

/// Sorts families into the order of [`families::ALL`], each with its `# HELP` and `# TYPE` first and its lines
/// sorted; blank lines are dropped. Expects families in one piece each, as every renderer writes them.
pub(super) fn in_order(text: &str) -> String {
    let mut families: Vec<(usize, Vec<&str>)> = Vec::with_capacity(families::ALL.len());
    for line in text.lines().filter(|line| !line.is_empty()) {
        let name = family_name(line);
        let position =
            families::ALL.iter().position(|family| family.name == name).unwrap_or(families::ALL.len());
        match families.last_mut() {
            Some((last, lines)) if *last == position => lines.push(line),
            _ => families.push((position, vec![line])),
        }
    }
    families.sort_by_key(|&(position, _)| position);
    let mut out = String::with_capacity(text.len());
    for (_, mut lines) in families {
        // `# HELP` sorts before `# TYPE`, and `#` before every name.
        lines.sort_unstable();
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Translates a text of heapgauge's families into OpenMetrics 1.0: counters are named without `_total`, units have a line of
/// their own, and the end is marked. No `_created` series: Prometheus would keep them as series of their own.
#[cfg(any(feature = "http", test))]
pub(super) fn open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4096);
    for line in text.lines() {
        let Some((word, rest)) = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let family = families::ALL.iter().find(|family| family.name == name);
        let name = match family {
            Some(family) if family.kind.is_counter() => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        // The text format does not escape quotes here.
        let rest = if word == "HELP" { rest.replace('"', "\\\"") } else { rest.to_owned() };
        out.push_str(&format!("# {word} {name} {rest}\n"));
        let unit = match family.map(|family| family.unit) {
            Some(families::Unit::Bytes) => "bytes",
            Some(families::Unit::Seconds) => "seconds",
            _ => continue,
        };
        if word == "TYPE" && name.ends_with(&format!("_{unit}")) {
            out.push_str(&format!("# UNIT {name} {unit}\n"));
        }
    }
    out.push_str("# EOF\n");
    out
}

/// Removes the families of [`families::ALL`] from an exposition of others.
pub(super) fn without_ours(text: &str) -> String {
    let is_ours = |line: &str| families::ALL.iter().any(|family| family.name == family_name(line));
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n').filter(|line| !is_ours(line)) {
        out.push_str(line);
    }
    out
}

/// Returns the name in a line `# HELP name …`, `# TYPE name …`, `name{…} value` or `name value`.
fn family_name(line: &str) -> &str {
    let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
    rest.split(['{', ' ']).next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_families_are_left_out() {
        let theirs = "# HELP heap_used H.\n# TYPE heap_used gauge\nheap_used{site=\"a\"} 1\n\n";
        let ours = "# HELP heap_live_bytes B.\n# TYPE heap_live_bytes gauge\nheap_live_bytes 1\n";
        assert_eq!(without_ours(&format!("{theirs}{ours}heap_site_info{{site=\"a\"}} 1\n")), theirs);
    }

    /// As the crate `prometheus-client` writes the same report, but for values that are the same number in other figures.
    #[cfg(feature = "prometheus-client")]
    #[test]
    fn openmetrics_has_the_lines_that_another_encoder_writes() {
        let ours = open_metrics(include_str!("golden.prom"));
        let whole = |line: &str| line.strip_suffix(".0").unwrap_or(line).to_owned();
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(whole).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&ours), lines(include_str!("golden.openmetrics")));
        assert!(ours.ends_with("\n# EOF\n") && !ours.contains("_created"));
    }

    #[test]
    fn families_and_lines_come_in_the_fixed_order() {
        let text = "# HELP heap_site_live_bytes B.\n# TYPE heap_site_live_bytes gauge\n\
                    heap_site_live_bytes{site=\"b\"} 1\nheap_site_live_bytes{site=\"a\"} 2\n\n\
                    # HELP heap_tracking T.\n# TYPE heap_tracking gauge\nheap_tracking 1\n\n";
        assert_eq!(
            in_order(text),
            "# HELP heap_tracking T.\n# TYPE heap_tracking gauge\nheap_tracking 1\n\
             # HELP heap_site_live_bytes B.\n# TYPE heap_site_live_bytes gauge\n\
             heap_site_live_bytes{site=\"a\"} 2\nheap_site_live_bytes{site=\"b\"} 1\n"
        );
    }
}
