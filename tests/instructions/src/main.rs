//! Runs one hot path a given number of times, for `tests/instructions.py`.
//!
//! `instructions` lists the paths, how often each runs, and its counted function; `instructions PATH COUNT` runs one. The start
//! of the process, the first events of a path and its blocks are the same for `COUNT` and for twice that, so the difference of
//! two runs is the path alone.

mod inner;
mod paths;
mod reproducible;
mod stacks;

use inner::Inner;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<Inner> = heapgauge::TrackingAllocator::new(Inner);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(wanted) = arguments.next() else {
        for path in paths::ALL {
            println!("{}\t{}\t{}", path.name, path.count, path.within);
        }
        return;
    };
    let path = paths::ALL.iter().find(|path| path.name == wanted);
    let path = path.unwrap_or_else(|| panic!("no path is named {wanted:?}"));
    let count =
        arguments.next().and_then(|text| text.parse().ok()).expect("how often the path is to be taken");
    assert!(count <= 2 * path.count, "{count}: at most {}", 2 * path.count);
    (path.take)(count, 2 * path.count);
}
