//! Tells functions that a derive made from those that were written.
//!
//! Pure functions on text, read side only. What they allocate is charged to the line that calls them.
#![forbid(unsafe_code)]

/// Returns whether a demangled symbol is of code that a derive made: of the trait `Clone`, or inside the constant without
/// a name that macros put their code in.
pub(super) fn is_derived(demangled: &str) -> bool {
    demangled.contains("::_::<impl ") || demangled.contains(" as core::clone::Clone>::clone")
}

/// Returns whether an inlined function of own code, of which line tables give the bare name alone, is a derive's: a `clone`,
/// a `deserialize` from any format, or one that its caller knows by a type, or that calls another with one, inside a
/// constant without a name.
pub(super) fn is_derived_inline(bare: &str, neighbours: [Option<&str>; 2]) -> bool {
    let name = bare.split('<').next().unwrap_or(bare);
    name == "clone"
        || name == "deserialize" && name.len() < bare.len()
        || !name.starts_with('{')
            && neighbours.into_iter().flatten().any(|generics| generics.contains("::_::{impl#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_derives_is_known_by_its_symbol() {
        for (demangled, is) in [
            ("app::_::<impl serde_core::de::Deserialize for app::Order>::deserialize", true),
            ("<app::Order as core::clone::Clone>::clone", true),
            ("<alloc::vec::Vec<app::Order> as core::clone::Clone>::clone", true),
            ("<app::Order as app::Store>::clone", false),
            ("app::orders::load", false),
        ] {
            assert_eq!(is_derived(demangled), is, "{demangled}");
        }
        let visitor = "deserialize_struct<json::SliceRead, app::_::{impl#0}::deserialize::__Visitor>";
        let document = "from_slice<app::Order>";
        for (bare, caller, callee, is) in [
            ("visit_map<json::MapAccess<json::SliceRead>>", Some(visitor), None, true),
            ("visit_map<json::MapAccess<json::SliceRead>>", Some(document), None, false),
            ("deserialize<&mut json::Deserializer<json::SliceRead>>", Some(document), Some(visitor), true),
            ("deserialize<&mut json::Deserializer<json::SliceRead>>", Some(document), None, true),
            ("deserialize", Some(document), None, false),
            ("clone", None, None, true),
            ("clone_into", None, None, false),
            ("{closure#0}", Some(visitor), None, false),
        ] {
            assert_eq!(is_derived_inline(bare, [caller, callee]), is, "{bare}");
        }
    }
}
