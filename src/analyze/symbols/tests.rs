//! Names of real stacks, and of stacks that do not fit into the limits of time and memory.
#![forbid(unsafe_code)]

use super::cache::UNRECORDED;
use super::site::site_id;
use super::*;
use crate::analyze::frame::UNKNOWN;
use crate::analyze::symbols::site_rules::SiteRules;

fn here() -> Vec<usize> {
    let mut addresses = Vec::new();
    backtrace::trace(|frame| {
        addresses.push(frame.ip() as usize);
        true
    });
    addresses
}

/// Returns the site of a stack, whose id is its first address.
fn site_of(symbols: &Symbols, stack: &[usize]) -> Option<Arc<Site>> {
    symbols.site(stack.first().map_or(2, |address| *address as u32), stack)
}

/// Makes stacks of one address each, all different, in the middle of this program's code.
fn code(count: usize) -> Vec<[usize; 1]> {
    let begin = Symbols::traceback as *const () as usize;
    (1..=count).map(|at| [begin + at]).collect()
}

#[test]
fn a_real_stack_is_named() {
    let symbols = Symbols::new();
    let (stack, line) = (here(), line!());
    assert_eq!(site_of(&symbols, &stack), None);
    assert!(symbols.traceback(&stack, 64, false).is_none());
    let progress = symbols.resolve(&mut std::iter::once(&stack), Duration::MAX);
    assert_eq!(progress, Progress { named: 1, total: 1, more: false });

    let all = symbols.names().frames(&stack, false).unwrap();
    let this = "heapgauge::analyze::symbols::tests::a_real_stack_is_named";
    let (frame, owner) = all.iter().find(|(frame, _)| frame.function.as_deref() == Some(this)).unwrap();
    assert_eq!(
        (&*frame.file, frame.line, *owner),
        ("src/analyze/symbols/tests.rs", line, CodeOwner::Heapgauge)
    );
    for (frame, _) in &all {
        assert!(!frame.file.starts_with('/'), "{frame}");
    }
    let (harness, owner) = all.iter().find(|(frame, _)| frame.name().starts_with("test::")).unwrap();
    assert_eq!((harness.file.starts_with("library/test/src/"), *owner), (true, CodeOwner::Standard));

    // `backtrace` is a library like any other, and the most recent that is not std or heapgauge.
    let site = site_of(&symbols, &stack).unwrap();
    assert_eq!(&*site.krate, "backtrace");
    assert!(site.file.starts_with("backtrace-0.3."), "{}", site.file);
    let traceback = symbols.traceback(&stack, 2, false).unwrap();
    assert_eq!((traceback.shared_frames().len(), traceback.total_frames()), (2, 3));
    assert_eq!(traceback.most_recent().name(), &*site.function);
    let whole = symbols.traceback(&stack, usize::MAX, false).unwrap();
    assert_eq!(whole.total_frames(), whole.frames().len());
    let truncated = symbols.traceback(&stack, usize::MAX, true).unwrap();
    assert_eq!(truncated.total_frames(), truncated.frames().len() + 1);
    assert!(symbols.memory_bytes() > 0);

    let look_through = Some(vec!["backtrace".to_owned()]);
    symbols.set_site_rules(&SiteSettings { look_through, ..SiteSettings::default() });
    let again = site_of(&symbols, &stack).unwrap();
    assert_eq!(&*again.krate, "backtrace", "looked through only when a later frame exists");
}

#[test]
fn a_stack_of_the_standard_library_alone_goes_by_the_frame_that_wanted_the_block() {
    let standard =
        |function: &str, file: &str| (Arc::new(Frame::new(Some(function), file, 7)), CodeOwner::Standard);
    let ways = [
        standard("alloc::alloc::Global::alloc_impl_runtime", "library/alloc/src/alloc.rs"),
        standard("core::alloc::Allocator::allocate", "library/core/src/alloc/mod.rs"),
        standard("std::alloc::Global::alloc", "library/std/src/alloc.rs"),
        standard("finish_grow", "library/alloc/src/raw_vec/mod.rs"),
        standard("alloc::raw_vec::RawVec::grow_one", UNKNOWN),
        standard("alloc::sync::Arc::new", "library/alloc/src/sync.rs"),
        standard("hashbrown::raw::alloc::inner::do_alloc", "hashbrown-0.16.1/src/raw/alloc.rs"),
    ];
    let wanted = [
        standard("std::thread::lifecycle::spawn_unchecked", "library/std/src/thread/lifecycle.rs"),
        standard("start_thread", "sysdeps/nptl/pthread_create.c"),
    ];
    let rules = SiteRules::default();
    assert_eq!(rules.choose(&[&ways[..], &wanted].concat()).site, ways.len());
    assert_eq!(rules.choose(&ways).site, 0, "nothing else is there");
}

#[test]
fn case_58_frames_above_the_site_are_left_out_unless_nothing_would_remain() {
    let symbols = Symbols::new();
    let stack = here();
    // Without names every address is a frame, by module and offset; a name comes with `resolve`.
    let unnamed = symbols.placed(&stack, usize::MAX);
    assert!(!symbols.is_named(&stack) && unnamed.iter().all(|placed| placed.frame.function.is_none()));
    symbols.resolve(&mut std::iter::once(&stack), Duration::MAX);
    assert!(symbols.is_named(&stack));

    let traceback = symbols.traceback(&stack, usize::MAX, false).unwrap();
    let placed = symbols.placed(&stack, usize::MAX);
    let frames: Vec<&Arc<Frame>> = placed.iter().map(|placed| &placed.frame).collect();
    assert_eq!(frames, traceback.shared_frames().iter().collect::<Vec<_>>());
    assert_eq!(symbols.placed(&stack, 2).len(), 2);
    // Each frame has its position: at ascending addresses, and below them inlined in turn.
    for pair in placed.windows(2) {
        let next = (pair[1].at, pair[1].inlined);
        assert!(
            next == (pair[0].at, pair[0].inlined + 1) || (next.0 > pair[0].at && next.1 == 0),
            "{pair:?}"
        );
    }

    // The harness and the runtime alone: no frame is a program's, and all are there.
    let last = &placed[placed.len() - 1];
    let standard = &stack[last.at..];
    let all = symbols.placed(standard, usize::MAX);
    assert_eq!((all[0].at, all[0].inlined), (0, 0));
    assert_eq!(all[all.len() - 1].frame, last.frame);
    let lost = symbols.placed(&[], usize::MAX);
    assert_eq!((lost.len(), &*lost[0].frame.name()), (1, UNRECORDED));
}

#[cfg(all(feature = "pprof", target_os = "linux", target_env = "gnu"))]
#[test]
fn case_58_mappings_hold_the_code_of_every_module() {
    let mappings = mappings();
    let here = case_58_mappings_hold_the_code_of_every_module as *const () as usize;
    let program = &mappings[0];
    assert!(
        mappings.iter().any(|mapping| {
            (mapping.start..mapping.limit).contains(&here) && mapping.path == program.path
        })
    );
    assert_eq!(Some(&*program.build_id), build_id().as_deref());
    let libc = mappings.iter().find(|mapping| mapping.path.contains("/libc.so")).unwrap();
    assert!(libc.build_id.len() >= 16 && libc.build_id != program.build_id, "{libc:?}");
}

/// Started through the loader, the program is to the system a library of that one, and not the first that is mapped.
#[cfg(all(feature = "pprof", target_os = "linux", target_env = "gnu"))]
#[test]
fn case_58_the_first_mapping_is_the_programs_though_the_loader_was_started() {
    const TEST: &str = "analyze::symbols::tests::case_58_mappings_hold_the_code_of_every_module";
    let loader = mappings().into_iter().find(|mapping| mapping.path.contains("/ld-linux")).unwrap();
    let mut through_loader = std::process::Command::new(&*loader.path);
    let output =
        through_loader.arg(std::env::current_exe().unwrap()).args(["--exact", TEST]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
}

#[test]
fn a_stack_that_was_lost_has_a_name_at_once() {
    let symbols = Symbols::new();
    let site = site_of(&symbols, &[]).unwrap();
    assert_eq!((&*site.function, &*site.file, site.line), ("[unrecorded]", "<unknown>", 0));
    assert_eq!(site.id, site_id("[unrecorded]", "<unknown>", 0, ""));
    let progress = symbols.resolve(&mut std::iter::once(&[][..]), Duration::ZERO);
    assert_eq!(progress, Progress { named: 1, total: 1, more: false });
}

#[test]
fn lines_lost_later_do_not_put_off_looking_for_the_first() {
    let symbols = Symbols::new();
    symbols.names().lose(2);
    let first = symbols.names().lost_at;
    symbols.names().lose(1);
    let names = symbols.names();
    assert!(first.is_some());
    assert_eq!((names.lost_at, names.lost_room), (first, 1));
}

#[test]
fn beyond_the_limit_a_stack_goes_by_module_and_offset() {
    let symbols = Symbols::new();
    symbols.set_max_overhead(0);
    let stacks = code(40);
    let progress = symbols.resolve(&mut stacks.iter(), Duration::MAX);
    assert_eq!(progress, Progress { named: stacks.len(), total: stacks.len(), more: false });
    assert_eq!(symbols.over_limit(), 40);

    let site = site_of(&symbols, &stacks[39]).unwrap();
    assert!(site.function.starts_with("heapgauge-"), "{}", site.function);
    assert!(site.function.contains("+0x"), "{}", site.function);
    assert_eq!((&*site.file, site.line, &*site.krate), ("<unknown>", 0, "<unknown>"));
    let memory = symbols.memory_bytes();
    let more = code(100).split_off(40);
    assert_eq!(symbols.resolve(&mut more.iter(), Duration::MAX).named, more.len());
    assert!(more.iter().all(|stack| site_of(&symbols, stack).is_some()));
    assert_eq!((symbols.memory_bytes(), symbols.over_limit()), (memory, 100));

    // With more room it is as if nothing had been asked before.
    symbols.set_max_overhead(DEFAULT_MAX_OVERHEAD);
    assert_eq!(site_of(&symbols, &stacks[39]), None);
    symbols.resolve(&mut stacks.iter(), Duration::MAX);
    assert_eq!(&*site_of(&symbols, &stacks[39]).unwrap().krate, "heapgauge");
}

/// An array of addresses may be freed, and another stack's come to the same place.
#[test]
fn a_stack_gets_no_name_of_another_one_at_the_same_place() {
    let symbols = Symbols::new();
    let here = here();
    let known = |address: &usize| symbols.names().frames(&[*address], false).is_some();
    symbols.resolve(&mut std::iter::once(&here), Duration::MAX);
    assert!(here.iter().all(known));
    let alone = |addresses: &[usize]| {
        let symbols = Symbols::new();
        symbols.resolve(&mut std::iter::once(addresses), Duration::MAX);
        symbols.site(2, addresses).unwrap()
    };
    // Both have as many addresses, and the second overwrites the first.
    let mut place = vec![0; here.len() / 2];
    let sites = [&here[..place.len()], &here[here.len() - place.len()..]].map(|stack| {
        place.copy_from_slice(stack);
        let id = 2 + u32::from(stack.as_ptr() != here.as_ptr());
        (symbols.site(id, &place).unwrap(), alone(stack))
    });
    assert_ne!(sites[0].1.id, sites[1].1.id);
    for (site, alone) in sites {
        assert_eq!((site.id, &site.function), (alone.id, &alone.function));
    }
}

/// Sets a limit of half the bytes needed each time, and far more than the names found.
#[test]
fn a_module_too_large_for_lines_goes_by_functions_and_then_by_offsets() {
    let stacks = code(40);
    let cost = {
        let modules = loaded_modules::list();
        let image = loaded_modules::main_module(&modules).and_then(ElfImage::open).unwrap();
        [image.lines_cost(), image.functions_cost()]
    };
    assert!(cost[0] > 2 * cost[1] && cost[1] > 1 << 17, "{cost:?}");
    for (room, name) in
        [(cost[0] / 2, "heapgauge::analyze::symbols::Symbols::traceback"), (cost[1] / 2, "+0x")]
    {
        let symbols = Symbols::new();
        symbols.set_max_overhead(control::tracker_memory() + room);
        let progress = symbols.resolve(&mut stacks.iter(), Duration::MAX);
        assert_eq!(progress, Progress { named: 40, total: 40, more: false });
        assert_eq!(symbols.over_limit(), 40);
        assert!(!symbols.full.load(Ordering::Relaxed));
        let site = site_of(&symbols, &stacks[0]).unwrap();
        assert!(site.function.contains(name), "{}", site.function);
        assert_eq!((&*site.file, site.line), ("<unknown>", 0));
    }
}

/// A limit that is small because the system had little memory left must not be seen in the names.
#[test]
fn only_a_limit_that_was_set_makes_names_without_lines_final() {
    let stacks = code(1);
    let modules = loaded_modules::list();
    let cost = loaded_modules::main_module(&modules).and_then(ElfImage::open).unwrap().lines_cost();
    for (nominal, is_final) in [(DEFAULT_MAX_OVERHEAD.max(2 * cost), false), (cost / 2, true)] {
        let symbols = Symbols::new();
        symbols.set_budget(control::tracker_memory() + cost / 2, 0, nominal);
        symbols.resolve(&mut stacks.iter(), Duration::MAX);
        let site = site_of(&symbols, &stacks[0]).unwrap();
        assert_eq!((site.line, site.is_final()), (0, is_final), "{nominal}");
        let quality = match is_final {
            true => Quality { names: "functions", lines: LineTables::TooLarge },
            false => Quality { names: "lines", lines: LineTables::Available },
        };
        assert_eq!(symbols.quality(), quality);
    }
}

#[test]
fn a_batch_stops_when_its_time_is_up_and_the_next_goes_on() {
    let symbols = Symbols::new();
    let stacks = code(4 * LEAST_PER_BATCH);
    for round in 1..=4 {
        let progress = symbols.resolve(&mut stacks.iter(), Duration::ZERO);
        let (named, total) = (round * LEAST_PER_BATCH, stacks.len());
        assert_eq!(progress, Progress { named, total, more: round < 4 });
    }
}

/// The addresses of all stacks looked for at once were named in their order: with little time, no stack was whole.
#[test]
fn the_stack_asked_for_first_is_named_whole_however_little_time_there_is() {
    let symbols = Symbols::new();
    let addresses: Vec<usize> = code(12 * LEAST_PER_BATCH).concat();
    // Deep stacks, each with an address among those of the others.
    let stacks: Vec<Vec<usize>> =
        (0..4).map(|first| addresses.iter().skip(first).step_by(4).copied().collect()).collect();
    for (at, stack) in stacks.iter().enumerate() {
        let progress = symbols.resolve(&mut stacks.iter(), Duration::ZERO);
        assert_eq!(progress, Progress { named: at + 1, total: 4, more: at < 3 });
        assert!(site_of(&symbols, stack).is_some());
    }
}

#[test]
fn another_threads_batch_is_waited_for_as_long_as_there_is_time() {
    let symbols = Symbols::new();
    let stack = here();
    let resolve = |budget| symbols.resolve(&mut std::iter::once(&stack), budget);
    let other = Batch::begin(&symbols, Instant::now(), Duration::ZERO).unwrap();
    let begun = Instant::now();
    let budget = Duration::from_millis(20);
    assert_eq!(resolve(budget), Progress { named: 0, total: 1, more: true });
    assert!(begun.elapsed() >= budget);
    drop(other);
    assert_eq!(resolve(budget), Progress { named: 1, total: 1, more: false });
}

#[test]
fn two_threads_may_name_at_once() {
    let symbols = Symbols::new();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let stack = here();
                let progress = symbols.resolve(&mut std::iter::once(&stack), Duration::MAX);
                assert_eq!(progress, Progress { named: 1, total: 1, more: false });
            });
        }
    });
}

#[test]
fn the_test_executable_has_lines_and_a_build_id() {
    assert_eq!(global().quality(), Quality { names: "lines", lines: LineTables::Available });
    if let Some(id) = build_id() {
        assert!(id.len() >= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    assert!(std::ptr::eq(global(), global()));
}
