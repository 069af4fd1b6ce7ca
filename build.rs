//! The sanitizers of a build → `cfg(heapgauge_sanitized)` and, for ThreadSanitizer, `cfg(heapgauge_tsan)`, because
//! `cfg(sanitize)` is for nightly compilers only.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(heapgauge_sanitized, heapgauge_tsan)");
    // Cargo sets it where the compiler says that there are any.
    let Ok(sanitizers) = std::env::var("CARGO_CFG_SANITIZE") else { return };
    println!("cargo::rustc-cfg=heapgauge_sanitized");
    if sanitizers.split(',').any(|sanitizer| sanitizer == "thread") {
        println!("cargo::rustc-cfg=heapgauge_tsan");
    }
}
