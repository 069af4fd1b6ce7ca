//! Compiles the requests to valgrind, which its header has as macros of C.

fn main() {
    println!("cargo:rerun-if-changed=src/requests.c");
    cc::Build::new().file("src/requests.c").compile("requests");
}
