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
