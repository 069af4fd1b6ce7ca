//! One hot path, taken a given number of times, for `tests/instructions.py`.
//!
//! `instructions` lists the paths, how often each is to be taken, and what of it counts; `instructions PATH COUNT` takes one. Whatever
//! else a process does, its start, the first events of a path, the blocks that a path needs, is the same for `COUNT` and
//! for twice that, so the difference of two runs is the path alone.

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
