//! Tests filters on the dataset S1 against the results of CPython's `tracemalloc`: the acceptance cases C.

use super::common::{S1, snapshot};
use heapgauge::{DomainFilter, Filter};

/// Returns the sizes of the remaining blocks, in their order.
fn kept(filters: &[Filter]) -> Vec<u64> {
    snapshot(S1).filter_traces(filters).traces().iter().map(|trace| trace.size).collect()
}

#[test]
fn case_26_exclude_looks_at_the_most_recent_frame() {
    assert_eq!(kept(&[Filter::exclude("b.rs")]), [10, 10, 10, 2, 7]);
}

#[test]
fn case_27_inclusive_filters_are_alternatives() {
    let filters = [Filter::include("a.rs").line(2), Filter::include("a.rs").line(5)];
    assert_eq!(kept(&filters), [10, 10, 10, 2]);
}

#[test]
fn case_28_include_any_frame() {
    assert_eq!(kept(&[Filter::include("b.rs").all_frames()]), [10, 10, 10, 2, 66]);
}

#[test]
fn case_29_exclude_any_frame() {
    assert_eq!(kept(&[Filter::exclude("b.rs").all_frames()]), [7]);
}

#[test]
fn case_30_a_file_within_a_domain() {
    assert_eq!(kept(&[Filter::exclude("a.rs").domain(1)]), [10, 10, 10, 66, 7]);
    assert_eq!(kept(&[Filter::include("a.rs").domain(0)]), [10, 10, 10]);
}

#[test]
fn case_31_inclusive_and_exclusive_together() {
    assert_eq!(kept(&[Filter::include("a.rs"), Filter::exclude("a.rs").line(5)]), [10, 10, 10]);
    assert_eq!(kept(&[DomainFilter::include(0).into(), Filter::include("b.rs")]), [10, 10, 10, 66]);
    assert_eq!(kept(&[DomainFilter::exclude(0).into()]), [2, 66, 7]);
    assert_eq!(kept(&[DomainFilter::exclude(0).into(), DomainFilter::exclude(3).into()]), [2, 66]);
}

#[test]
fn case_32_lines_and_globs() {
    assert_eq!(kept(&[Filter::include("a.rs")]), [10, 10, 10, 2]);
    assert_eq!(kept(&[Filter::include("*").line(0)]), [7]);
    assert_eq!(kept(&[Filter::include("a*")]), [10, 10, 10, 2]);
    assert_eq!(kept(&[Filter::include("a*c")]), [0; 0]);
    assert_eq!(kept(&[Filter::include("")]), [0; 0]);
    assert_eq!(kept(&[Filter::include("[ab].rs")]), [10, 10, 10, 2, 66]);
}

#[test]
fn case_33_the_source_stays_as_it_is() {
    let source = snapshot(S1);
    let before = source.clone();
    let copy = source.filter_traces(&[]);
    assert_eq!(copy, source);
    assert_eq!(source.filter_traces(&[Filter::exclude("*")]).traces().len(), 0);
    assert_eq!(source, before);
}
