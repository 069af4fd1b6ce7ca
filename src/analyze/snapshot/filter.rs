//! Filters the traces of a snapshot as `tracemalloc` filters.
//!
//! Pure functions on values, for any thread; linear in the number of traces.
#![forbid(unsafe_code)]

use crate::analyze::frame::Frame;
use crate::analyze::scope::ScopeFilter;
use crate::analyze::snapshot::{Snapshot, Trace};

/// Condition on a trace: by file, line, domain and scope.
///
/// A trace is kept if it meets any of the inclusive filters (or there are none) and none of the exclusive ones
/// excludes it.
///
/// # Examples
///
/// ```
/// use heapgauge::{DomainFilter, Filter};
///
/// let filters = [
///     Filter::include("src/cache*.rs").all_frames(),
///     Filter::exclude("src/cache_test.rs").line(7),
///     DomainFilter::include(0).into(),
/// ];
/// # let _ = filters;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    inclusive: bool,
    /// Pattern of the file; `None`: a filter on the domain alone.
    pattern: Option<Vec<Token>>,
    line: Option<u32>,
    all_frames: bool,
    domain: Option<u32>,
    scope: Option<ScopeFilter>,
}

impl Filter {
    /// Keeps traces whose site is in a file that matches `pattern`: `*` matches anything (`/`
    /// too), `?` one character, `[a-z]` and `[!a-z]` one of or one but.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::include("src/*.rs");
    /// # let _ = filter;
    /// ```
    pub fn include(pattern: &str) -> Filter {
        Filter {
            inclusive: true,
            pattern: Some(tokens(pattern)),
            line: None,
            all_frames: false,
            domain: None,
            scope: None,
        }
    }

    /// Drops traces whose site is in a file that matches `pattern`; see [`Filter::include`].
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::exclude("library/*");
    /// # let _ = filter;
    /// ```
    pub fn exclude(pattern: &str) -> Filter {
        Filter { inclusive: false, ..Filter::include(pattern) }
    }

    /// Restricts the filter to this line of the file; 0 matches frames without a line.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::include("src/cache.rs").line(42);
    /// # let _ = filter;
    /// ```
    pub fn line(mut self, line: u32) -> Filter {
        self.line = Some(line);
        self
    }

    /// Matches any frame of a traceback, not only the site's.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::include("src/api/*").all_frames();
    /// # let _ = filter;
    /// ```
    pub fn all_frames(mut self) -> Filter {
        self.all_frames = true;
        self
    }

    /// Restricts the filter to traces of this domain: an exclusive filter leaves those of others.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::exclude("src/gpu.rs").domain(7);
    /// # let _ = filter;
    /// ```
    pub fn domain(mut self, domain: u32) -> Filter {
        self.domain = Some(domain);
        self
    }

    /// Restricts the filter to blocks whose scope has this key with this value, cut and cleaned as [`Scope`](crate::Scope) does it: an
    /// exclusive filter leaves the others.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::Filter::include("*").scope("tenant", "acme");
    /// # let _ = filter;
    /// ```
    pub fn scope(mut self, key: &str, value: &str) -> Filter {
        self.scope = Some(ScopeFilter::new(key, value));
        self
    }

    /// Returns whether this filter, alone, leaves the trace in.
    fn keeps(&self, trace: &Trace) -> bool {
        let frames = trace.traceback.shared_frames();
        let considered = if self.all_frames { frames } else { &frames[trace.traceback.site_index()..][..1] };
        let matched = considered.iter().any(|frame| self.matches(frame))
            && self.domain.is_none_or(|domain| domain == trace.domain)
            && self.scope.as_ref().is_none_or(|scope| scope.admits(&trace.scope));
        matched == self.inclusive
    }

    fn matches(&self, frame: &Frame) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| is_match(pattern, &frame.file))
            && self.line.is_none_or(|line| line == frame.line)
    }
}

/// Condition on a trace's domain alone; becomes a [`Filter`] with `into()`.
///
/// # Examples
///
/// ```
/// use heapgauge::{DomainFilter, Filter};
///
/// let filter: Filter = DomainFilter::exclude(7).into();
/// # let _ = filter;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainFilter {
    inclusive: bool,
    domain: u32,
}

impl DomainFilter {
    /// Keeps traces of this domain.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::DomainFilter::include(0);
    /// # let _ = filter;
    /// ```
    pub fn include(domain: u32) -> DomainFilter {
        DomainFilter { inclusive: true, domain }
    }

    /// Drops traces of this domain.
    ///
    /// # Examples
    ///
    /// ```
    /// let filter = heapgauge::DomainFilter::exclude(7);
    /// # let _ = filter;
    /// ```
    pub fn exclude(domain: u32) -> DomainFilter {
        DomainFilter { inclusive: false, domain }
    }
}

impl From<DomainFilter> for Filter {
    fn from(filter: DomainFilter) -> Filter {
        Filter {
            inclusive: filter.inclusive,
            pattern: None,
            line: None,
            all_frames: false,
            domain: Some(filter.domain),
            scope: None,
        }
    }
}

impl Snapshot {
    /// Returns a snapshot of those traces that the filters leave; with no filter, a copy.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Filter, Snapshot};
    ///
    /// let snapshot = Snapshot::take()?;
    /// let nothing = snapshot.filter_traces(&[Filter::include("no/such/file.rs")]);
    /// assert_eq!(nothing.traces().len(), 0);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn filter_traces(&self, filters: &[Filter]) -> Snapshot {
        let no_inclusive = !filters.iter().any(|filter| filter.inclusive);
        self.filtered(|trace| {
            let included = filters.iter().any(|filter| filter.inclusive && filter.keeps(trace));
            let excluded = filters.iter().any(|filter| !filter.inclusive && !filter.keeps(trace));
            (no_inclusive || included) && !excluded
        })
    }
}

/// Step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`
    Any,
    /// `?`
    One,
    /// `[…]`: these ranges, or all but them.
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Char(char),
}

impl Token {
    fn accepts(&self, found: char) -> bool {
        match self {
            Token::Any | Token::One => true,
            Token::Set { negated, ranges } => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&found)) != *negated
            }
            Token::Char(expected) => *expected == found,
        }
    }
}

/// Parses the pattern as Python's `fnmatch` does, whose filters those of `tracemalloc` are. Crates of globs match paths: `*` ends
/// at a `/`, `**` and braces have a meaning, and a set that nothing closes is an error.
fn tokens(pattern: &str) -> Vec<Token> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let char = chars[at];
        at += 1;
        match char {
            '*' if tokens.last() == Some(&Token::Any) => {}
            '*' => tokens.push(Token::Any),
            '?' => tokens.push(Token::One),
            '[' => match set_end(&chars, at) {
                Some(end) => {
                    tokens.push(set(&chars[at..end]));
                    at = end + 1;
                }
                // Nothing closes it, so it is an ordinary character.
                None => tokens.push(Token::Char('[')),
            },
            _ => tokens.push(Token::Char(char)),
        }
    }
    tokens
}

/// Returns the position of the `]`; one right after `[` or `[!` belongs to the set.
fn set_end(chars: &[char], from: usize) -> Option<usize> {
    let mut at = from;
    if chars.get(at) == Some(&'!') {
        at += 1;
    }
    if chars.get(at) == Some(&']') {
        at += 1;
    }
    chars.iter().skip(at).position(|char| *char == ']').map(|after| at + after)
}

fn set(inside: &[char]) -> Token {
    let (negated, mut rest) = match inside {
        ['!', rest @ ..] => (true, rest),
        _ => (false, inside),
    };
    let mut ranges = Vec::new();
    loop {
        match rest {
            // Empty ranges match nothing.
            [low, '-', high, after @ ..] => {
                ranges.push((*low, *high));
                rest = after;
            }
            [char, after @ ..] => {
                ranges.push((*char, *char));
                rest = after;
            }
            [] => return Token::Set { negated, ranges },
        }
    }
}

/// Returns whether the text matches. Linear but for the text after each `*`, which is tried again further on.
fn is_match(pattern: &[Token], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut token) = (0, 0);
    let mut last_any: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(token) {
            Some(Token::Any) => {
                last_any = Some((token, at));
                token += 1;
            }
            Some(one) if one.accepts(text[at]) => {
                at += 1;
                token += 1;
            }
            _ => match &mut last_any {
                Some((any, from)) => {
                    *from += 1;
                    (token, at) = (*any + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[token..].iter().all(|token| *token == Token::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_32_globs_as_fnmatch_has_them() {
        // Each with the result of CPython 3.11's fnmatch.fnmatchcase.
        let expected = [
            ("a*", "abb", true),
            ("a*c", "abb", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "a/b", true),
            ("src/*.rs", "src/deep/er.rs", true),
            ("src/*.rs", "src/deep/er.rsx", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[!]]", "a", true),
            ("[]", "[]", true),
            ("[a", "[a", true),
            ("[!", "[!", true),
            ("[z-a]", "m", false),
            ("[!z-a]", "m", true),
            ("[a-]", "-", true),
            ("[-a]", "-", true),
            ("[a-c-e]", "-", true),
            ("[a-c-e]", "d", false),
            ("[\\]", "\\", true),
            ("[^a]", "^", true),
            ("[^a]", "b", false),
            ("*a*b*c*", "xxaxxbxxcxx", true),
            ("*a*b*c*", "xxaxxcxxbxx", false),
            ("a.rs", "aXrs", false),
            ("ä?", "äö", true),
        ];
        for (pattern, text, matched) in expected {
            assert_eq!(is_match(&tokens(pattern), text), matched, "{pattern} {text}");
        }
    }
}
