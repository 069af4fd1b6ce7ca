//! Normalises a demangled symbol to its source path: `alloc::vec::Vec<T,A>::push` → `alloc::vec::Vec::push`.
//!
//! Pure functions on text, read side only; linear in the length of the name.
//!
//! The rules, the same for both manglings:
//!
//! * generic arguments go, written `<T>` or `::<T>`; so does the crate hash (`{:#}` of the demangler);
//! * `<X as Y>::f` and `prefix::<impl Y for X>::f` become `X::f`; `Y::f` where X has no path of its own
//!   (`T`, `&T`, `[T]`, `u8`), where X belongs to the standard library and Y does not, or where the file is
//!   known to belong to Y's crate. So the first segment is the crate that holds the code;
//! * `<X>::f` and `prefix::<impl X>::f` become `X::f`; where X has no path, `slice::f`, `str::f` and so on
//!   or, with a prefix, `prefix::f`;
//! * closures and async blocks are named by the function they stand in: `{{closure}}`, `{closure#0}` and `{impl#0}` go.
#![forbid(unsafe_code)]

/// Crates that make up the standard library, by the first segment of a path.
pub(super) const STANDARD: &[&str] = &[
    "std",
    "core",
    "alloc",
    "proc_macro",
    "test",
    "std_detect",
    "core_arch",
    "panic_unwind",
    "panic_abort",
    "compiler_builtins",
    "unwind",
    "__rustc",
];

/// Removes the generic arguments of a demangled name, or of the bare name of line tables (`insert<u8>`).
///
/// `home` is the crate the file belongs to, where that is known.
pub(super) fn normalise(demangled: &str, home: Option<&str>) -> String {
    let mut path: Vec<String> = Vec::new();
    let mut rest = demangled.trim();
    while !rest.is_empty() {
        if rest.starts_with('<') {
            let Some((inside, after)) = enclosed(rest) else {
                path.push(rest.to_owned());
                break;
            };
            if path.is_empty() {
                path.push(qualified(inside, home));
            } else if let Some(of) = inside.strip_prefix("impl ") {
                implemented(&mut path, of, home);
            }
            rest = after;
        } else {
            let end = segment_end(rest);
            let segment = &rest[..end];
            // A closure or an async block is named by the function that contains it, if that is known.
            let is_part = segment.starts_with("{impl#") || segment.starts_with('{') && !path.is_empty();
            if !is_part && !segment.is_empty() {
                path.push(segment.to_owned());
            }
            rest = &rest[end..];
            if rest.starts_with('<') {
                match enclosed(rest) {
                    Some((_, after)) => rest = after,
                    None => break,
                }
            }
        }
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            // A suffix of the code generator may follow a Rust name: `.llvm.123`, `.cold`.
            None => break,
        }
    }
    let mut name = path.join("::");
    if let Some(at) = [".llvm.", ".cold", ".part.", ".isra.", ".constprop.", ".lto_priv."]
        .iter()
        .filter_map(|suffix| name.find(suffix))
        .min()
    {
        name.truncate(at);
    }
    name.replace('\\', "/")
}

/// Puts `module` in front of the bare name `name`.
pub(super) fn within(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// Returns the first segment of a path with more than one, if it can be a crate's name.
pub(super) fn first_segment(path: &str) -> Option<&str> {
    let (first, _) = path.split_once("::")?;
    let plain = !first.is_empty() && first.chars().all(|c| c.is_alphanumeric() || c == '_');
    plain.then_some(first)
}

/// Returns whether the function of a demangled symbol can be that of the bare name.
pub(super) fn same_function(demangled: &str, bare: &str) -> bool {
    if demangled.ends_with('}') || bare.starts_with('{') {
        return demangled.ends_with('}') && bare.starts_with('{');
    }
    last_segment(&normalise(demangled, None)) == bare
}

/// Returns the function that contains a closure or the body of an `async fn`, which line tables call `{closure#2}` or
/// `{async_fn#0}`, from the generic arguments of the function that calls it:
/// `call_once<(), app::main::{closure_env#2}>` → `app::main`.
pub(super) fn closure_path(bare: &str, caller: &str, home: Option<&str>) -> Option<String> {
    let (kind, number) = bare.strip_prefix('{')?.split_once('#')?;
    let environment = format!("::{{{kind}_env#{number}");
    let mut found: Option<String> = None;
    for (at, _) in caller.match_indices(&environment) {
        let begin =
            caller[..at].rfind(['<', '>', ' ', ',', '(', '&', '*', '[']).map_or(0, |before| before + 1);
        let path = normalise(&caller[begin..at], None);
        if home.is_some_and(|home| first_segment(&path) != Some(home)) {
            continue;
        }
        match &found {
            Some(other) if *other != path => return None,
            _ => found = Some(path),
        }
    }
    found
}

fn last_segment(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// Adds the path of `prefix::<impl …>` to the prefix already in `path`.
fn implemented(path: &mut Vec<String>, of: &str, home: Option<&str>) {
    // Legacy mangling writes the impl's own generics nowhere, so `of` begins with the trait or the type.
    match split_at_depth(of, " for ") {
        Some((of_trait, of_type)) => *path = vec![choose(of_type, of_trait, home)],
        None => {
            if let Some(nominal) = nominal(of) {
                *path = vec![nominal];
            }
        }
    }
}

fn qualified(inside: &str, home: Option<&str>) -> String {
    match split_at_depth(inside, " as ") {
        Some((of_type, of_trait)) => choose(of_type, of_trait, home),
        None => nominal(inside).unwrap_or_else(|| primitive(inside).to_owned()),
    }
}

fn choose(of_type: &str, of_trait: &str, home: Option<&str>) -> String {
    let trait_path = normalise(of_trait, None);
    let Some(type_path) = nominal(of_type) else { return trait_path };
    let (type_crate, trait_crate) = (first_segment(&type_path), first_segment(&trait_path));
    let standard = |name: Option<&str>| name.is_some_and(|name| STANDARD.contains(&name));
    let trait_is_home = home.is_some() && trait_crate == home && type_crate != home;
    let trait_is_nearer = standard(type_crate) && !standard(trait_crate);
    if trait_is_home || trait_is_nearer { trait_path } else { type_path }
}

/// Returns the path of a type that has one: not `T`, `u8`, `[T]`, `(A, B)`, `fn()`.
fn nominal(of: &str) -> Option<String> {
    let mut of = of.trim();
    loop {
        let stripped = of.trim_start_matches(['&', '*', ' ']);
        let stripped = ["mut ", "const ", "dyn ", "impl "]
            .iter()
            .fold(stripped, |text, word| text.strip_prefix(word).unwrap_or(text));
        let stripped = match stripped.strip_prefix('\'') {
            Some(lifetime) => lifetime.split_once(' ').map_or("", |(_, after)| after),
            None => stripped,
        };
        if stripped == of {
            break;
        }
        of = stripped;
    }
    if let Some(inside) = of.strip_prefix("(dyn ").and_then(|of| of.strip_suffix(')')) {
        return nominal(inside);
    }
    let of = split_at_depth(of, "+").map_or(of, |(first, _)| first.trim_end());
    let begins = of.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '<');
    if !begins || of.starts_with("fn(") {
        return None;
    }
    let path = normalise(of, None);
    path.contains("::").then_some(path)
}

fn primitive(of: &str) -> &str {
    match of.as_bytes().first() {
        Some(b'[') if of.contains(';') => "array",
        Some(b'[') => "slice",
        Some(b'(') => "tuple",
        Some(b'*') => "pointer",
        Some(b'&') => primitive(of.trim_start_matches(['&', ' ']).trim_start_matches("mut ")),
        _ if of.starts_with("fn(") || of.starts_with("unsafe ") || of.starts_with("extern ") => "fn",
        _ => of,
    }
}

/// Splits `<a<b>>::c` into (`a<b>`, `::c`). The `>` of `->` closes nothing.
fn enclosed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    let mut before = 0u8;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' if before != b'-' && before != b'=' => {
                depth -= 1;
                if depth == 0 {
                    return Some((&text[1..at], &text[at + 1..]));
                }
            }
            _ => {}
        }
        before = byte;
    }
    None
}

/// Returns the end of the first segment: at `::` or `<` outside braces.
fn segment_end(text: &str) -> usize {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && text[at..].starts_with("::") => return at,
            b'<' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// Splits at the first `separator` outside all brackets.
fn split_at_depth<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0usize;
    let mut before = 0u8;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            b'>' if before == b'-' || before == b'=' => {}
            b'>' | b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ if depth == 0 && text.as_bytes()[at..].starts_with(separator.as_bytes()) => {
                return Some((&text[..at], &text[at + separator.len()..]));
            }
            _ => {}
        }
        before = byte;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random_input::{Random, inputs};
    use backtrace::SymbolName;

    fn of(symbol: &str) -> String {
        normalise(&format!("{:#}", SymbolName::new(symbol.as_bytes())), None)
    }

    #[test]
    fn legacy_symbols() {
        let expected = [
            ("_ZN6expsym4main17hfe1a94fb74ba88d6E", "expsym::main"),
            ("_ZN6expsym4main28_$u7b$$u7b$closure$u7d$$u7d$17h0affece6ef705dfcE", "expsym::main"),
            (
                "_ZN57_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$inner..Visit$GT$5visit17hdf051cca67edfe44E",
                "inner::Visit::visit",
            ),
            (
                "_ZN4core3ops8function5impls80_$LT$impl$u20$core..ops..function..FnOnce$LT$A$GT$$u20$for$u20$\
                 $RF$mut$u20$F$GT$9call_once17h240a1018ffd349b5E",
                "core::ops::function::FnOnce::call_once",
            ),
            (
                "_ZN9hashbrown3raw13RawTableInner16drop_inner_table17h741df33ddf7e6609E",
                "hashbrown::raw::RawTableInner::drop_inner_table",
            ),
            (
                "_ZN70_$LT$alloc..vec..Vec$LT$T$C$A$GT$$u20$as$u20$core..ops..drop..Drop$GT$4drop17h0123456789abcdefE",
                "alloc::vec::Vec::drop",
            ),
            ("_ZN5alloc3vec16Vec$LT$T$C$A$GT$4push17h0123456789abcdefE", "alloc::vec::Vec::push"),
            (
                "_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17hce8bc80e2a52f650E",
                "std::rt::lang_start",
            ),
        ];
        for (symbol, path) in expected {
            assert_eq!(of(symbol), path, "{symbol}");
        }
    }

    #[test]
    fn v0_symbols() {
        let expected = [
            ("_RNvNtCsjrHSEGnQ3l9_3std2rt19lang_start_internal", "std::rt::lang_start_internal"),
            ("_RNCNvNtCsjrHSEGnQ3l9_3std2rt19lang_start_internal0B5_", "std::rt::lang_start_internal"),
            (
                "_RINvNtCsjrHSEGnQ3l9_3std9panicking12catch_unwindiNCNvNtB4_2rt19lang_start_internal0EB4_",
                "std::panicking::catch_unwind",
            ),
            (
                "_RNvXs0_NtNtNtCsgEmfK2I1SDS_4core3ops8function5implsRDINtB7_2FnuEp6OutputlNtNtBb_6marker4Sync\
                 NtNtNtBb_5panic11unwind_safe13RefUnwindSafeEL_INtB7_6FnOnceuE9call_onceCsjrHSEGnQ3l9_3std",
                "core::ops::function::Fn::call_once",
            ),
            (
                "_RNvMsa_NtCsgvbsrvnw3yD_9hashbrown3rawNtB5_13RawTableInner15allocation_info",
                "hashbrown::raw::RawTableInner::allocation_info",
            ),
            ("_RNvCskwGfYPst2Cb_7___rustc12___rust_alloc", "__rustc::__rust_alloc"),
        ];
        for (symbol, path) in expected {
            assert_eq!(of(symbol), path, "{symbol}");
        }
    }

    #[test]
    fn demangled_text() {
        let expected = [
            (
                "<alloc::vec::Vec<T,A> as core::iter::traits::collect::Extend<T>>::extend",
                "alloc::vec::Vec::extend",
            ),
            ("<my_app::cache::Cache<u8>>::insert::<alloc::string::String>", "my_app::cache::Cache::insert"),
            (
                "<my_app::Cache as core::iter::Extend<(u8, u8)>>::extend::<[(u8, u8); 3]>",
                "my_app::Cache::extend",
            ),
            ("<T as my_app::Visit>::visit", "my_app::Visit::visit"),
            ("<&T as my_app::Visit>::visit", "my_app::Visit::visit"),
            ("<&my_app::Cache as my_app::Visit>::visit", "my_app::Cache::visit"),
            ("<&'a mut my_app::Cache as my_app::Visit>::visit", "my_app::Cache::visit"),
            ("<[T] as my_app::Visit>::visit::{{closure}}", "my_app::Visit::visit"),
            ("<(dyn my_app::Visit + core::marker::Send)>::boxed", "my_app::Visit::boxed"),
            ("<dyn my_app::Visit>::boxed", "my_app::Visit::boxed"),
            ("<[u8]>::to_vec", "slice::to_vec"),
            ("<[u8; 4]>::map::<u8, u8>", "array::map"),
            ("<str>::to_lowercase", "str::to_lowercase"),
            ("<(A, B) as my_app::Visit>::visit", "my_app::Visit::visit"),
            ("alloc::slice::<impl [T]>::to_vec", "alloc::slice::to_vec"),
            ("alloc::str::<impl str>::to_lowercase", "alloc::str::to_lowercase"),
            ("my_app::extra::<impl my_app::cache::Cache<T>>::fill", "my_app::cache::Cache::fill"),
            (
                "serde_core::de::impls::<impl serde_core::de::Deserialize for alloc::vec::Vec<T>>::deserialize",
                "serde_core::de::Deserialize::deserialize",
            ),
            ("<F as axum::handler::Handler<(M,T1),S>>::call::{{closure}}", "axum::handler::Handler::call"),
            ("my_app::run::<fn(u8) -> alloc::vec::Vec<u8>, my_app::main::{closure#0}>", "my_app::run"),
            ("<fn(u8) -> u8 as my_app::Visit>::visit", "my_app::Visit::visit"),
            (
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
                "core::ops::function::FnOnce::call_once{{vtable.shim}}",
            ),
            ("my_app::main::{closure#0}::{closure#1}", "my_app::main"),
            ("my_app::load::{{closure}}::{{closure}}", "my_app::load"),
            ("<my_app::Cache as my_app::Store>::get::{async_fn#0}", "my_app::Cache::get"),
            (
                "<alloc::boxed::Box<dyn core::ops::function::Fn<(A,)> + Output = R> as core::ops::function::FnOnce<A>>::call_once",
                "alloc::boxed::Box::call_once",
            ),
            ("<<my_app::A as my_app::B>::C as my_app::D>::f", "my_app::A::C::f"),
            (
                "my_app::value::de::{impl#0}::deserialize::Visitor::visit",
                "my_app::value::de::deserialize::Visitor::visit",
            ),
            ("my_app::main.llvm.123456", "my_app::main"),
            ("insert<u8, alloc::vec::Vec<(i32, i32)>>", "insert"),
            ("{closure#1}", "{closure#1}"),
            ("call_once<(), app::main::{closure_env#2}>", "call_once"),
            ("main", "main"),
            ("broken<", "broken"),
            ("<", "<"),
            ("", ""),
        ];
        for (demangled, path) in expected {
            assert_eq!(normalise(demangled, None), path, "{demangled}");
        }
    }

    #[test]
    fn the_files_crate_decides_between_type_and_trait() {
        let name = "<serde_json::value::Value as my_app::Visit>::visit";
        assert_eq!(normalise(name, None), "serde_json::value::Value::visit");
        assert_eq!(normalise(name, Some("serde_json")), "serde_json::value::Value::visit");
        assert_eq!(normalise(name, Some("my_app")), "my_app::Visit::visit");
    }

    #[test]
    fn a_closure_is_named_by_what_its_caller_was_given() {
        let caller = "map<alloc::string::String, u8, &mut expsym::main::{closure_env#0}>";
        assert_eq!(closure_path("{closure#0}", caller, None).as_deref(), Some("expsym::main"));
        assert_eq!(closure_path("{closure#1}", caller, None), None);
        assert_eq!(closure_path("insert", caller, None), None);
        assert_eq!(closure_path("{closure#0}", caller, Some("other")), None);
        let nested = "call<core::Map<std::env::Args, app::{impl#3}::run::{closure#1}::{closure_env#0}<u8>>>";
        assert_eq!(closure_path("{closure#0}", nested, Some("app")).as_deref(), Some("app::run"));
        let future = "poll<app::api::get::{async_fn_env#0}>";
        assert_eq!(closure_path("{async_fn#0}", future, Some("app")).as_deref(), Some("app::api::get"));
        let two = "both<app::a::{closure_env#0}, app::b::{closure_env#0}>";
        assert_eq!(closure_path("{closure#0}", two, None), None);
    }

    #[test]
    fn a_symbol_is_matched_with_the_bare_name() {
        assert!(same_function("app::Cache::insert", "insert"));
        assert!(same_function("app::main::{{closure}}", "{closure#3}"));
        assert!(same_function("app::get::{{closure}}", "{async_fn#0}"));
        assert!(!same_function("app::Cache::insert", "remove"));
        assert!(!same_function("app::main::{{closure}}", "main"));
    }

    #[test]
    fn any_text_becomes_a_name_without_backslashes() {
        let words = [
            "<",
            ">",
            "::",
            " as ",
            " for ",
            "<impl ",
            "{impl#0}",
            "{closure#1}",
            "{{closure}}",
            "app",
            "T",
            "&",
            "mut ",
            "dyn ",
            "'a ",
            "[u8]",
            "(A, B)",
            "fn(",
            ")",
            "->",
            ",",
            "+",
            ".llvm.",
            "core::fmt::Debug",
            "_ZN",
            "_R",
            "alloc",
            "*const ",
        ];
        let mut random = Random::new();
        for _ in 0..inputs(100_000) {
            let (name, caller) = (random.text(&words), random.text(&words));
            let normal = normalise(&name, random.one(&[None, Some("app")]));
            assert!(!normal.contains('\\'), "{name:?}: {normal:?}");
            assert!(normal.len() <= 2 * name.len() + 16, "{name:?}: {normal:?}");
            first_segment(&normal);
            same_function(&normal, &caller);
            closure_path(&name, &caller, random.one(&[None, Some("app")]));
        }
    }
}
