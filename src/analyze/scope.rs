//! Scopes as values: the keys and values that a snapshot, a file or a report holds.
//!
//! Any thread may use them. Cloning is O(1): the text behind them is shared.
#![forbid(unsafe_code)]

use crate::record::raw_snapshot::{ScopeId, ScopeNames, shown_value};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Value that stands for the pairs of a key that have no row or no place of their own.
pub(crate) const OTHER: &str = "[other]";

/// Number of scopes whose labels are kept before any are forgotten.
const FEW_LABELS: usize = 64;

/// Keys and values of the scope that blocks were allocated in, ascending by key; empty where they were allocated in none.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{Scope, Snapshot};
///
/// let kept = Scope::new("tenant", "acme").in_scope(|| vec![1u8; 5_000]);
/// let snapshot = Snapshot::take()?;
/// let trace = snapshot.traces().iter().find(|trace| trace.scope.get("tenant") == Some("acme")).unwrap();
/// assert_eq!((trace.size, trace.scope.to_string()), (5_000, "tenant=acme".to_owned()));
/// # drop(kept);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeLabels {
    /// `None` where there is none, so that an empty one allocates nothing.
    pairs: Option<Arc<[Pair]>>,
}

/// Key and value.
pub(crate) type Pair = (Arc<str>, Arc<str>);

impl ScopeLabels {
    /// Makes labels of pairs in any order, each key once.
    pub(crate) fn new(mut pairs: Vec<Pair>) -> ScopeLabels {
        pairs.sort_unstable();
        ScopeLabels { pairs: (!pairs.is_empty()).then(|| pairs.into()) }
    }

    /// Makes the labels of a scope of this process.
    pub(crate) fn of(names: &ScopeNames, scope: ScopeId) -> ScopeLabels {
        if scope == ScopeId::NONE {
            return ScopeLabels::default();
        }
        ScopeLabels::new(
            names.of(scope).iter().map(|(key, value)| (Arc::from(*key), value.clone())).collect(),
        )
    }

    /// Returns whether the blocks were allocated in no scope.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(heapgauge::ScopeLabels::default().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.pairs.is_none()
    }

    /// Returns the value of a key.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::ScopeLabels::default().get("tenant"), None);
    /// ```
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    /// Iterates over keys and values, ascending by key.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::ScopeLabels::default().iter().count(), 0);
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs().iter().map(|(key, value)| (&**key, &**value))
    }

    pub(crate) fn pairs(&self) -> &[Pair] {
        self.pairs.as_deref().unwrap_or_default()
    }
}

/// Prints `tenant=acme,route=/search`; nothing where it is empty.
impl fmt::Display for ScopeLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.iter().enumerate() {
            write!(f, "{}{key}={value}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for ScopeLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Key and value that blocks are selected by: `tenant:acme`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScopeFilter {
    pub key: String,
    pub value: String,
    /// The value as a program's scope shows it: cut, and without characters that are not printable.
    shown: String,
}

impl ScopeFilter {
    pub(crate) fn new(key: &str, value: &str) -> ScopeFilter {
        ScopeFilter { key: key.into(), value: value.into(), shown: shown_value(value).into_owned() }
    }

    /// Returns whether blocks with these labels are selected. Files may have values that no scope would show.
    pub(crate) fn admits(&self, labels: &ScopeLabels) -> bool {
        labels.get(&self.key).is_some_and(|value| value == self.value || value == self.shown)
    }
}

/// Allowed form of a filter, for a message.
pub(crate) const FILTER: &str = "a key and a value such as tenant:acme";

impl FromStr for ScopeFilter {
    type Err = &'static str;

    /// Splits at the first colon; a key has none.
    fn from_str(text: &str) -> Result<ScopeFilter, &'static str> {
        match text.split_once(':') {
            Some((key, value)) if !key.is_empty() => Ok(ScopeFilter::new(key, value)),
            _ => Err(FILTER),
        }
    }
}

/// Labels by scope, each made once and shared by all the counts that are kept.
#[derive(Debug, Default)]
pub(crate) struct LabelsByScope {
    known: HashMap<ScopeId, ScopeLabels>,
    /// Number that was left the last time that any were forgotten.
    left: usize,
}

impl LabelsByScope {
    pub(crate) fn labels(&mut self, names: &ScopeNames, scope: ScopeId) -> ScopeLabels {
        if scope == ScopeId::NONE {
            return ScopeLabels::default();
        }
        self.known.entry(scope).or_insert_with(|| ScopeLabels::of(names, scope)).clone()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Forgets labels that no counts hold, once there are twice as many as were left the last time.
    pub(crate) fn forget_unused(&mut self) {
        if self.known.len() <= 2 * self.left + FEW_LABELS {
            return;
        }
        self.known
            .retain(|_, labels| labels.pairs.as_ref().is_some_and(|pairs| Arc::strong_count(pairs) > 1));
        self.known.shrink_to(2 * self.known.len());
        self.left = self.known.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_printed_in_the_order_of_their_keys() {
        let labels =
            ScopeLabels::new(vec![("tenant".into(), "acme".into()), ("route".into(), "/a,b".into())]);
        assert_eq!(labels.to_string(), "route=/a,b,tenant=acme");
        assert_eq!(format!("{labels:?}"), r#"{"route": "/a,b", "tenant": "acme"}"#);
        assert_eq!((labels.get("tenant"), labels.get("job")), (Some("acme"), None));
        assert!(ScopeLabels::new(Vec::new()).is_empty());
    }

    #[test]
    fn a_filter_is_a_key_and_a_value() {
        let filter: ScopeFilter = "route:/a:b".parse().unwrap();
        assert_eq!((&*filter.key, &*filter.value), ("route", "/a:b"));
        let labels = |value: &str| ScopeLabels::new(vec![("route".into(), value.into())]);
        assert!(filter.admits(&labels("/a:b")) && !filter.admits(&labels("/a")));
        assert!(!filter.admits(&ScopeLabels::default()));
        // As `Scope::new` shows what it is given.
        for (given, shown) in
            [("a\\b", "a/b"), ("", "?"), ("a\tb", "a?b"), (&"x".repeat(70), &"x".repeat(64))]
        {
            assert!(ScopeFilter::new("route", given).admits(&labels(shown)), "{given:?}");
            assert!(ScopeFilter::new("route", given).admits(&labels(given)), "{given:?}");
        }
        for text in ["", "tenant", ":acme"] {
            assert_eq!(text.parse::<ScopeFilter>(), Err(FILTER));
        }
    }

    #[test]
    fn labels_that_no_counts_hold_are_forgotten() {
        let mut labels = LabelsByScope::default();
        let mut kept = Vec::new();
        for number in 1..=10_000 {
            let scope = ScopeId::sample(number);
            let names = ScopeNames::sample(&[(scope, &[("tenant", "acme")])]);
            kept.push(labels.labels(&names, scope));
            kept.truncate(1);
            labels.forget_unused();
        }
        assert!(labels.known.len() <= FEW_LABELS + 2, "{}", labels.known.len());
        assert!(labels.known.contains_key(&ScopeId::sample(1)));
    }
}
