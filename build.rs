//! The sanitizers of a build → `cfg(heapgauge_sanitized)`, because `cfg(sanitize)` is for nightly compilers only.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(heapgauge_sanitized)");
    // Cargo sets it where the compiler says that there are any.
    if std::env::var_os("CARGO_CFG_SANITIZE").is_some() {
        println!("cargo::rustc-cfg=heapgauge_sanitized");
    }
}
