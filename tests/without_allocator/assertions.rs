//! Tests that no assertion about the heap passes in a program without a tracking allocator.

use heapgauge::testing::{assert_allocates, assert_no_growth};
use std::panic::catch_unwind;

#[test]
fn assertions_name_what_is_missing() {
    for assertion in [|| assert_no_growth(|| ()), || assert_allocates(.., || ())] {
        let said = catch_unwind(assertion).expect_err("it has to panic").downcast::<String>().unwrap();
        assert!(said.contains("nothing can be said here: heapgauge is not the global allocator"), "{said}");
    }
    let ((), work) = heapgauge::measure(|| drop(vec![0_u8; 10]));
    assert!(!work.is_exact());
    assert_eq!((work.allocations, work.peak_bytes), (0, 0));
}
